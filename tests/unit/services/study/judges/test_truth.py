"""The truth of a world as a judge: the right user, the right moment, the right items."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.simulator.settings import WorldSettings
from sluice.catalog.simulator.truth import Truth
from sluice.learner.evaluation.evaluate import UserResults
from sluice.services.config import load_config
from sluice.services.stages.prepare import prepare_data
from sluice.services.stages.simulate import simulate_world
from sluice.services.study.judges.truth import OracleTrust, TrueClickThrough


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A small world, and the data set that a run makes of its log."""
    directory = tmp_path_factory.mktemp("world")
    world = WorldSettings.model_validate({"name": "w", "users": {"count": 60}, "items": {"count": 400}})
    simulate_world(world, directory / "world")
    files = (
        f"data.source.interactions=[{directory / 'world' / 'interactions.parquet'}]",
        f"data.source.catalogue={directory / 'world' / 'items.parquet'}",
    )
    config = load_config("configs/half-wrong.yaml", files)
    dataset = Dataset.open(prepare_data(config.data, directory / "data").directory)
    return SimpleNamespace(directory=directory / "world", dataset=dataset)


def results_of(dataset, rows, items):
    examples = dataset.examples("test")
    return UserResults(
        users=examples.users[rows],
        positions=examples.positions[rows],
        ranks=np.zeros(len(rows), dtype=np.int64),
        items=items,
        invalid=np.zeros(len(rows), dtype=np.int64),
    )


def test_the_dwell_of_a_click_is_its_mean_over_the_noise(shop):
    examples = shop.dataset.examples("test")
    items = np.array([[3, 7, -1]], dtype=np.int32)
    first = Examples(users=examples.users[:1], positions=examples.positions[:1])
    truth = TrueClickThrough(shop.directory)
    chances = truth.of_items(shop.dataset, first, items)[0]
    seconds = truth.dwell_of_items(shop.dataset, first, items)[0]
    click = Truth.open(shop.directory).world.click
    noise = np.random.default_rng(0).normal(size=200_000)
    for place in (0, 1):
        logit = np.log(chances[place] / (1 - chances[place]))
        drawn = np.exp(click.dwell_base + click.dwell_slope * logit + click.dwell_noise * noise)
        assert seconds[place] == pytest.approx(drawn.mean(), rel=0.01)
    assert seconds[2] == 0 == chances[2]


def test_the_top_ten_is_judged_for_its_user_at_its_moment(shop):
    dataset, rows = shop.dataset, np.array([0, 5, 9])
    lists = np.random.default_rng(0).integers(0, dataset.items, (3, 20)).astype(np.int32)
    judged = TrueClickThrough(shop.directory)(dataset, results_of(dataset, rows, lists))
    truth = Truth.open(shop.directory)
    for row, place in enumerate(rows):
        examples = dataset.examples("test")
        user, position = int(examples.users[place]), int(examples.positions[place])
        time = dataset.timestamps[dataset.offsets[user] + position]
        items = [int(dataset.item_ids[item]) for item in lists[row, :10]]
        known = int(dataset.user_ids[user])
        expected = [
            float(truth.click_probability([known], truth.steps_of([time]), [item])[0]) for item in items
        ]
        assert judged["true_ctr"][row] == pytest.approx(np.mean(expected), rel=1e-5)
        assert judged["group"][row] == "AB"[truth.segment[known]]


def test_an_oracle_trusts_the_ranker_about_segment_a_alone(shop):
    truth, examples = Truth.open(shop.directory), shop.dataset.examples("test")
    trust = OracleTrust(shop.directory, shop.dataset).measure(examples)
    known = [int(shop.dataset.user_ids[user]) for user in examples.users]
    assert trust.tolist() == [1.0 - truth.segment[user] for user in known] and 0 < trust.mean() < 1


def test_a_place_without_an_item_is_worth_nothing(shop):
    whole = np.arange(10, dtype=np.int32)[None]
    half = np.where(np.arange(10) < 5, whole, -1).astype(np.int32)
    judge, rows = TrueClickThrough(shop.directory), np.array([3])
    first, second = (
        judge(shop.dataset, results_of(shop.dataset, rows, items))["true_ctr"][0] for items in (half, whole)
    )
    rest = np.concatenate([whole[:, 5:], np.full((1, 5), -1)], axis=1).astype(np.int32)
    third = judge(shop.dataset, results_of(shop.dataset, rows, rest))["true_ctr"][0]
    assert 0 < first < second and first + third == pytest.approx(second)
