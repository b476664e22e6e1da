"""Users are served from where the log left them: their history, what they may see, and what they did."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.errors import DataError, PolicyError
from sluice.catalog.simulator.settings import WorldSettings
from sluice.learner.policy.policy import build_policy, load_policy, mark_catalogue, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.ab.serve import Ids, serve_users
from sluice.services.ab.slates import NO_ITEM, SlateMaker
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world

USERS = np.array([5, 0, 17, 200])


def no_progress(done, total, fields):
    """Shows nothing."""


def serve(shop, maker, users=USERS, visits=3, seed=0):
    return serve_users(maker, shop.world, shop.dataset, users, visits=visits, seed=seed, progress=no_progress)


def test_a_history_grows_by_what_was_clicked_and_that_is_not_shown_again(shop, planted):
    maker, users = planted(1), np.arange(300)
    outcomes = serve(shop, maker, users)
    (first, barred), (second, barred_then), _ = maker.asked
    grew = 0
    for row, user in enumerate(users.tolist()):
        assert first[row].tolist() == shop.dataset.items_of(user).tolist()
        assert set(first[row]) == set(barred[row].tolist())
        new = second[row][len(first[row]) :]
        assert set(barred_then[row].tolist()) == set(second[row].tolist())
        grew += len(new)
    assert grew > 100 and outcomes.clicks.mean() > 0
    third = maker.asked[2][0]
    clicks = sum(len(third[row]) - len(first[row]) for row in range(300))
    assert clicks < (outcomes.clicks * 12).sum()  # those of the last day are in no history
    assert (outcomes.impressions == 12).all()


def test_outcomes_are_what_the_truth_expects(shop, planted):
    outcomes = [serve(shop, planted(1), np.arange(400), visits=2, seed=seed) for seed in range(12)]
    clicks, expected = (np.mean([getattr(of, name) for of in outcomes]) for name in ("clicks", "expected"))
    spread = np.std([of.clicks.mean() for of in outcomes]) / np.sqrt(12)
    assert clicks == pytest.approx(expected, abs=4 * spread)
    liked = np.mean([of.liked for of in outcomes])
    assert expected < liked * 0.95 and expected > liked * 0.5  # places 1 to 4 are looked at with .5 to 1
    assert all((of.dwell > 0).tolist() == (of.clicks > 0).tolist() for of in outcomes)


def test_policies_are_served_under_the_same_luck(shop, planted):
    one, two, other = (serve(shop, planted(1), seed=seed) for seed in (3, 3, 4))
    assert (one.clicks == two.clicks).all() and (one.clicks != other.clicks).any()


def test_the_ids_of_another_world_are_refused(shop):
    few = WorldSettings.model_validate({"name": "few", "items": {"count": 450}, "users": {"count": 20}})
    with pytest.raises(DataError, match="users that are none of the world's, whose users are 0 to 19"):
        Ids.of(shop.dataset, few)


def test_another_world_of_the_same_size_is_refused(shop, planted, tmp_path):
    simulate_world(small_world(users__count=400, items__count=200, seed=1), tmp_path / "w")
    other = SimpleNamespace(world=tmp_path / "w", dataset=shop.dataset)
    with pytest.raises(DataError, match="interactions that are no clicks of the log in"):
        serve(other, planted(1))


def test_ids_that_no_integer_holds_are_refused(shop):
    huge = SimpleNamespace(user_ids=[str(10**30)], item_ids=shop.dataset.item_ids)
    with pytest.raises(DataError, match="users that are none of the world's"):
        Ids.of(huge, shop.truth.world)


def test_ids_and_rows_belong_together(shop):
    rows = np.array([[0, 3, NO_ITEM]])
    known = [int(shop.dataset.item_ids[row]) for row in (0, 3)]
    assert shop.ids.to_items(rows).tolist() == [[*known, NO_ITEM]]
    barred = np.zeros(200, dtype=bool)
    barred[known] = True
    assert sorted(shop.ids.rows_of(barred)) == [0, 3]


def test_slates_are_the_engines_beams_without_what_is_excluded(shop):
    histories = [shop.dataset.items_of(user) for user in USERS.tolist()]
    nothing = [np.empty(0, dtype=np.int64)] * 4
    done = []
    with SlateMaker(shop.config, shop.policies[0], shop.dataset, 4) as maker:
        free = maker.make(histories, nothing, done.append)
        alone = maker.make(histories[2:3], nothing[:1])
        held = maker.make(histories, [slate[:2] for slate in free])
    assert sum(done) == 4 and free.shape == (4, 4) and (free >= 0).all()
    assert alone[0].tolist() == free[2].tolist()
    for before, after in zip(free, held, strict=True):
        assert not set(after) & set(before[:2]) and len(set(after)) == 4 and (after >= 0).all()
    with SlateMaker(shop.config, shop.policies[1], shop.dataset, 4) as other:
        assert (other.make(histories, nothing) != free).any()


def test_a_slate_is_filled_as_far_as_items_are_left(shop):
    """Beams are more than what is left: 5 items, 2, none."""
    histories = [shop.dataset.items_of(user) for user in USERS.tolist()]
    rows, done = np.arange(shop.dataset.items), []
    excluded = [rows[5:], rows[2:], rows, rows[:0]]
    with SlateMaker(shop.config, shop.policies[0], shop.dataset, 4) as maker:
        slates = maker.make(histories, excluded, done.append)
    assert sum(done) == 4
    assert len(set(slates[0])) == 4 and set(slates[0]) <= set(range(5))
    assert sorted(slates[1]) == [NO_ITEM, NO_ITEM, 0, 1] and (slates[1][2:] == NO_ITEM).all()
    assert (slates[2] == NO_ITEM).all() and (slates[3] >= 0).all()


def test_a_policy_of_another_catalogue_is_refused(shop, tmp_path):
    sizes = PolicySettings(hidden_size=16, layers=1, heads=2)
    policy = build_policy(sizes, shop.dataset.level_sizes, 256, 0)
    mark_catalogue(policy, "another")
    save_policy(policy, tmp_path / "p")
    assert load_policy(tmp_path / "p")
    with pytest.raises(PolicyError, match="another catalogue"):
        SlateMaker(shop.config, tmp_path / "p", shop.dataset, 4)
