"""The truth says how likely a click was, and clicks follow it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sluice.catalog.errors import DataError
from sluice.catalog.simulator.settings import WorldSettings
from sluice.catalog.simulator.truth import Truth
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose log has every impression."""
    world = small_world(users__count=600, steps=20, segment_b__leak=1, chunk_users=250)
    return simulate_world(world, tmp_path_factory.mktemp("truth") / "world").directory


def test_clicks_are_as_likely_as_the_truth_says_in_every_decile(directory: Path):
    truth, log = Truth.open(directory), pq.read_table(directory / "interactions.parquet").to_pandas()
    steps = truth.steps_of(log.timestamp.to_numpy())
    chance = truth.click_probability(log.user_id.to_numpy(), steps, log.item_id.to_numpy())
    chance = chance * log.position.to_numpy() ** -0.5
    decile = np.searchsorted(np.quantile(chance, np.arange(0.1, 1, 0.1)), chance)
    for number in range(10):
        rows = decile == number
        spread = np.sqrt((chance[rows] * (1 - chance[rows])).sum()) / rows.sum()
        assert log.click[rows].mean() == pytest.approx(chance[rows].mean(), abs=4 * spread)
    assert chance[decile == 9].mean() > 10 * chance[decile == 0].mean()


def test_dwell_seconds_follow_the_truth(directory: Path):
    truth, log = Truth.open(directory), pq.read_table(directory / "interactions.parquet").to_pandas()
    log = log[log.click]
    p = truth.click_probability(
        log.user_id.to_numpy(), truth.steps_of(log.timestamp.to_numpy()), log.item_id.to_numpy()
    )
    rest = np.log(log.dwell_seconds.to_numpy()) - 3 - 0.25 * np.log(p / (1 - p))
    assert rest.mean() == pytest.approx(0, abs=0.03) and rest.std() == pytest.approx(0.5, abs=0.02)


def test_the_probability_is_the_stated_formula(directory: Path):
    truth = Truth.open(directory)
    user, step, item = 7, 13, 40
    segment = truth.segment[user]
    mood = truth.tastes[user, step] + 0.3 * truth.sessions[user, step]
    logit = -4 + 6 * mood @ truth.vectors[segment, item] + truth.quality[segment, item]
    p = truth.click_probability([user], [step], [item])
    assert p.dtype == np.float32 and p == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


def test_items_may_be_one_several_or_all(directory: Path):
    truth = Truth.open(directory)
    users, steps = np.asarray([3, 500, 3]), np.asarray([0, 19, 8])
    every = truth.click_probability(users, steps)
    items = np.asarray([[5, 9], [119, 0], [7, -1]])
    some = truth.click_probability(users, steps, items)
    assert every.shape == (3, 120) and some.dtype == every.dtype == np.float32
    expected = np.take_along_axis(every, items, axis=1)
    expected[2, 1] = 0  # no item
    assert some == pytest.approx(expected, abs=1e-6)
    assert truth.click_probability(users, steps, items[:, 0]) == pytest.approx(expected[:, 0], abs=1e-6)
    assert truth.click_probability(np.asarray([], int), np.asarray([], int)).shape == (0, 120)


@pytest.mark.parametrize(
    ("users", "steps", "items", "message"),
    [
        ([600], [0], [0], r"no user 600: its users are 0 to 599"),
        ([-1], [0], [0], r"no user -1"),
        ([0], [20], None, r"no step 20: its steps are 0 to 19 \(truth_from says"),
        ([0], [-1], None, r"no step -1"),
        ([0], [0], [120], r"no item 120: its items are -1 to 119"),
        ([0], [0], [[3, -2]], r"no item -2"),
    ],
)
def test_what_the_world_has_not_is_refused(directory: Path, users, steps, items, message: str):
    with pytest.raises(DataError, match=message):
        Truth.open(directory).click_probability(users, steps, items)


def test_steps_are_days_of_the_log(directory: Path):
    truth, log = Truth.open(directory), pq.read_table(directory / "interactions.parquet")
    steps = truth.steps_of(log.column("timestamp").to_numpy())
    assert set(steps) == set(range(20))
    assert truth.steps_of([1420070400 - 1, 1420070400, 1420156799, 1420156800]).tolist() == [-1, 0, 0, 1]


def test_tastes_are_kept_from_the_step_asked_for(directory: Path, tmp_path: Path):
    late = small_world(users__count=600, steps=20, segment_b__leak=1, truth_from=12)
    truth, whole = Truth.open(simulate_world(late, tmp_path / "late").directory), Truth.open(directory)
    assert truth.tastes.shape == (600, 8, 8)
    users, steps = np.arange(600), np.arange(600) % 8 + 12
    assert (truth.click_probability(users, steps) == whole.click_probability(users, steps)).all()
    with pytest.raises(DataError, match="no step 11: its steps are 12 to 19"):
        truth.click_probability([0], [11])


def test_a_world_that_cannot_be_read_says_so(directory: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no world: there is no world\.json"):
        Truth.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    shutil.rmtree(copy / "truth")
    with pytest.raises(
        DataError, match=r"the truth of the world .* cannot be read: .* Run `sluice simulate`"
    ):
        Truth.open(copy)
    manifest = json.loads((copy / "world.json").read_text())
    (copy / "world.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="has format 99, and this version reads 1: simulate it again"):
        Truth.open(copy)


def test_the_world_knows_its_dials(directory: Path):
    world = Truth.open(directory).world
    assert isinstance(world, WorldSettings) and world.segment_b.leak == 1 and world.steps == 20
