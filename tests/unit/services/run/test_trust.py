"""Trust as a run measures it: by its ranker actors, at its end, and in a file."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from sluice.learner.evaluation.evaluate import UserResults
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run import fleet, summary
from sluice.services.run.trust import measure_trust
from tests.rollout_fakes import RowRanker
from tests.tiny_data import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("trust") / "run-seed0")


def config_of(dataset, **gate):
    return RunConfig.model_validate(
        {
            "name": "run",
            "output": str(dataset.directory.parents[1]),
            "objective": {"type": "adagrpo", "gate": gate},
            "ranker": {"use": "tests.rollout_fakes:RowRanker"},
        }
    )


def test_a_run_leaves_the_trust_of_its_test_users(dataset):
    config = config_of(dataset, trust={"items": 3, "at_least": 2})
    paths = RunPaths.of(config)
    trust = measure_trust(config, paths, dataset, RowRanker())
    rows = pq.read_table(paths.trust).to_pydict()
    assert list(rows) == ["user_id", "position", "trust"]
    examples = dataset.examples("test")
    assert rows["user_id"] == [dataset.user_ids[user] for user in examples.users]
    assert rows["position"] == examples.positions.tolist()
    np.testing.assert_array_equal(np.float32(rows["trust"]), trust)
    # RowRanker likes late items, and users differ in those that they have.
    assert trust.min() < 0.4 and trust.max() > 0.8


def test_a_user_without_a_trust_has_null_in_the_file(dataset):
    config = config_of(dataset, trust={"items": 20, "at_least": 20})
    paths = RunPaths.of(config)
    assert np.isnan(measure_trust(config, paths, dataset, RowRanker())).all()
    assert set(pq.read_table(paths.trust).to_pydict()["trust"]) == {None}


def test_a_run_without_trust_leaves_no_file(dataset):
    config = config_of(dataset)
    paths = RunPaths.of(config)
    paths.trust.write_bytes(b"of an earlier start")
    assert measure_trust(config, paths, dataset, RowRanker()) is None
    assert not paths.trust.exists()


def test_the_strata_are_told_whom_the_gate_by_user_admits(dataset):
    config = config_of(dataset, parts="trust", trust={"items": 3, "at_least": 2})
    examples, items = dataset.examples("test"), np.arange(20, dtype=np.int32)
    start = UserResults(
        users=examples.users,
        positions=examples.positions,
        ranks=np.zeros(len(examples), dtype=np.int64),
        items=np.tile(items[:10], (len(examples), 1)),
        invalid=np.zeros(len(examples), dtype=np.int64),
    )
    admitted = summary._admitted(config, dataset, start, RowRanker())
    trust = measure_trust(config, RunPaths.of(config), dataset, RowRanker())
    np.testing.assert_array_equal(admitted, trust > 0.65)
    assert 0 < admitted.sum() < len(admitted)


@pytest.mark.parametrize("gate", [{}, {"trust": {"items": 3, "at_least": 2}}])
def test_the_ranker_actors_measure_trust_where_the_gate_asks_for_it(dataset, monkeypatch, gate):
    made = []

    def remote(_actor):
        start = SimpleNamespace(remote=lambda *_, **settings: made.append(settings))
        return SimpleNamespace(options=lambda **_: start)

    monkeypatch.setattr(fleet, "ray", SimpleNamespace(remote=remote))
    config = config_of(dataset, **gate)
    paths = SimpleNamespace(data=dataset.directory, ranker="nowhere", ranker_halves="nowhere")
    fleet._start_rankers(config, paths, SimpleNamespace(options=lambda *_: {}))
    (factory,) = [settings["meter_factory"] for settings in made]
    assert (factory is None) == (not gate)
    if factory is not None:
        expected = measure_trust(config, RunPaths.of(config), dataset, RowRanker())
        np.testing.assert_array_equal(factory(RowRanker()).measure(dataset.examples("test")), expected)
