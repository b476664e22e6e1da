"""Users after the log's end: they go on from where it left them, and follow what they are shown then."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sluice.catalog.errors import DataError
from sluice.catalog.simulator.items import make_items
from sluice.catalog.simulator.live import LiveWorld
from sluice.catalog.simulator.truth import Truth
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world

USERS = np.array([3, 150, 7])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "world"
    simulate_world(small_world(), path)
    return path


def log_of(directory, user):
    """The clicks of a user as (step, item)."""
    table = pq.read_table(
        directory / "interactions.parquet", filters=[("user_id", "=", user), ("click", "=", True)]
    )
    steps = Truth.open(directory).steps_of(table["timestamp"].to_numpy())
    return list(zip(steps.tolist(), table["item_id"].to_pylist(), strict=True))


def clicks_of(world, slates, days):
    return np.stack([world.visit(slates).clicked for _ in range(days)])


def test_a_world_without_its_log_is_refused(directory, tmp_path):
    for path in directory.iterdir():
        if path.name != "interactions.parquet":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"the log of the world .* cannot be read"):
        LiveWorld(tmp_path, USERS, 0)


def test_users_are_as_the_log_left_them(directory):
    world, truth = LiveWorld(directory, USERS, 0), Truth.open(directory)
    for row, user in enumerate(USERS.tolist()):
        clicks = log_of(directory, user)
        assert sorted(np.flatnonzero(world.consumed[row])) == sorted(item for _, item in clicks)
        session, seen = truth.sessions[user, 11], truth.vectors[truth.segment[user]]
        last = [item for step, item in clicks if step == 11]
        if last:
            session = 0.7 * session + 0.3 * seen[last].mean(axis=0)
        assert world.session[row] == pytest.approx(session, abs=1e-6)
    assert any(step == 11 for user in range(200) for step, _ in log_of(directory, user)), "the case is of use"


def test_clicks_are_as_likely_as_the_truth_says(directory):
    """Nothing drifts here, so the truth of the log's last step holds on the first day after it."""
    path = directory.parent / "still"
    simulate_world(
        small_world(users__drift=0, users__jump_chance=0, users__session_weight=0, users__count=250), path
    )
    truth, users = Truth.open(path), np.arange(250)
    slates = np.random.default_rng(0).permuted(np.tile(np.arange(120), (250, 1)), axis=1)[:, :4]
    known = truth.click_probability(users, np.full(250, 11), slates)
    visits = [LiveWorld(path, users, seed).visit(slates) for seed in range(60)]
    assert visits[0].probability == pytest.approx(known, abs=1e-5)
    rate = np.mean([visit.clicked for visit in visits], axis=(0, 1))
    expected = known.mean(axis=0) / np.sqrt(np.arange(1, 5))
    assert rate == pytest.approx(expected, abs=4 * np.sqrt(0.1 / (250 * 60)))
    dwell = np.concatenate([visit.dwell[visit.clicked] for visit in visits])
    assert np.log(dwell).mean() == pytest.approx(3.0, abs=0.3)
    assert all((visit.dwell[~visit.clicked] == 0).all() for visit in visits)


def test_tastes_move_from_day_to_day(directory):
    world, slates = LiveWorld(directory, np.arange(200), 0), np.tile([0, 1, 2, 3], (200, 1))
    first, second = world.visit(slates), world.visit(slates)
    idle = ~first.clicked.any(axis=1)
    change = np.abs(first.probability[idle] - second.probability[idle]).max(axis=1)
    assert idle.sum() > 20 and (change > 0).all()


def test_the_luck_of_a_day_does_not_hang_on_what_is_shown(directory):
    """A user whose slate is the same gets the same, whatever another user is shown."""
    slates = np.arange(12).reshape(3, 4)
    other = slates.copy()
    other[2] = [20, 21, 22, 23]
    for row in (0, 1):
        one, two = (clicks_of(LiveWorld(directory, USERS, 5), shown, 6)[:, row] for shown in (slates, other))
        assert (one == two).all()
    every = np.arange(200)
    wide = np.tile([0, 1, 2, 3], (200, 1))
    assert (
        clicks_of(LiveWorld(directory, every, 5), wide, 2)
        == clicks_of(LiveWorld(directory, every, 5), wide, 2)
    ).all()
    assert (
        clicks_of(LiveWorld(directory, every, 6), wide, 1)
        != clicks_of(LiveWorld(directory, every, 5), wide, 1)
    ).any()
    days = clicks_of(LiveWorld(directory, every, 5), wide, 2)
    assert (days[0] != days[1]).any()


def test_clicks_change_the_session_and_what_is_consumed(directory):
    every = np.arange(200)
    world, truth, slates = (
        LiveWorld(directory, every, 1),
        Truth.open(directory),
        np.tile([4, 9, 2, -1], (200, 1)),
    )
    before, had = world.session.copy(), world.consumed.copy()
    clicked = world.visit(slates).clicked
    assert not clicked[:, 3].any() and clicked.any()
    row = int(clicked.sum(axis=1).argmax())
    items = slates[row][clicked[row]]
    mean = truth.vectors[truth.segment[row]][items].mean(axis=0)
    assert world.session[row] == pytest.approx(0.7 * before[row] + 0.3 * mean, abs=1e-6)
    assert world.consumed[row, items].all()
    assert (world.consumed != had).sum() == (
        clicked & ~np.take_along_axis(had, np.maximum(slates, 0), 1)
    ).sum()
    nobody = ~clicked.any(axis=1)
    assert (world.session[nobody] == before[nobody]).all()


def test_an_empty_slot_counts_for_nothing(directory):
    visit = LiveWorld(directory, USERS, 0).visit(np.array([[1, -1], [-1, 2], [3, 4]]))
    assert visit.shown.tolist() == [[True, False], [False, True], [True, True]]
    assert (visit.probability[~visit.shown] == 0).all() and (visit.probability[visit.shown] > 0).all()


def test_items_are_for_sale_that_lived_at_the_end(tmp_path):
    world = small_world(items__mean_life=6, items__count=400)
    simulate_world(world, tmp_path / "w")
    alive = LiveWorld(tmp_path / "w", USERS, 0).alive
    assert alive.tolist() == make_items(world).alive(11).tolist() and 0 < alive.sum() < 400


def test_unknown_users_are_refused(directory):
    with pytest.raises(DataError, match="no user 200"):
        LiveWorld(directory, np.array([200]), 0)
