"""Which engine a rollout actor opens, and what its process needs for it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import RolloutSettings, TreeEngineSettings, VllmEngineSettings
from sluice.catalog.data.changes import ChangingCatalogue, ItemRow
from sluice.catalog.errors import RankerError, RunError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run import fleet as fleet_module
from sluice.services.run.engines import engine_variables, open_engine
from sluice.services.run.fleet import Fleet
from tests.rollout_fakes import CODES, LAYOUT
from tests.tiny_data import tiny_dataset

ROOT = Path(__file__).parents[4]


def config(engine):
    return RunConfig(name="tiny", rollout=RolloutSettings(engine=engine))


def test_only_vllm_needs_an_environment():
    assert engine_variables(config(TreeEngineSettings(threads=2))) == {}
    assert engine_variables(config(VllmEngineSettings(threads=2)))["OMP_NUM_THREADS"] == "2"


def test_the_tree_engine_is_opened_on_the_runs_policy_and_catalogue(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path)
    policy = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), dataset.level_sizes, 64, 0)
    save_policy(policy, tmp_path / "policy")
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    chosen = config(TreeEngineSettings(prompts_per_step=5))
    engine = open_engine(chosen, RunPaths(tmp_path), vocabulary, seed=3)
    assert isinstance(engine, TreeEngine) and (engine.version, engine.in_flight) == (0, 0)
    assert "engine prompts_per_step = 5: given in the settings" in capsys.readouterr().out
    engine.close()


def test_the_tree_engine_loads_neither_vllm_nor_ray():
    script = "import sys, sluice.actors.engines.tree\nprint(sorted({'ray', 'vllm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class Published:
    def __init__(self):
        self.versions = []

    def publish(self, vocabulary):
        self.versions.append(vocabulary)


class FailingQueue:
    def __init__(self):
        self.failed, self.revoked = [], []

    def fail(self, message):
        self.failed.append(message)

    def revoke(self, name, reason):
        self.revoked.append(name)

    def note_error(self, source, message):
        pass


@pytest.mark.parametrize(("cause", "ends"), [(RankerError("wrong answers"), True), (RunError("gone"), False)])
def test_a_ranker_that_is_broken_ends_the_run_without_a_restart(monkeypatch, cause, ends):
    def raise_it(_reference):
        raise RayTaskError("run", "", cause)

    monkeypatch.setattr(fleet_module.ray, "get", raise_it)
    begun = []
    rollout = SimpleNamespace(
        name="rollout-0", running="reference", restarts=0, begin_again=lambda: begun.append(True)
    )
    fleet = Fleet(
        queue=FailingQueue(),
        publisher=None,
        catalogues=None,
        catalogue_source=None,
        rollouts=[rollout],
        reservation=None,
        max_restarts=20,
        _metrics=SimpleNamespace(add=lambda *_, **__: None),
    )
    fleet._replace(rollout)
    assert (fleet.failure is cause, fleet.queue.failed) == (ends, ["wrong answers"] if ends else [])
    assert (begun, rollout.restarts) == (([], 0) if ends else ([True], 1))


def test_what_is_pushed_is_published_and_a_change_that_cannot_be_read_does_not_end_the_run(
    tmp_path, caplog, capsys
):
    start = Vocabulary.of(CODES, LAYOUT)
    ids = [f"i{row}" for row in range(len(CODES))]
    published = Published()
    fleet = Fleet(
        queue=None,
        publisher=None,
        catalogues=published,
        catalogue_source=None,
        rollouts=[],
        reservation=None,
        max_restarts=0,
        _changes=ChangingCatalogue(lambda: ids, start, tmp_path / "catalogue"),
    )
    fleet._follow_catalogue()
    assert published.versions == []
    gone = [ItemRow(where="row 1", item_id=item_id, codes=None) for item_id in ("i1", "i3")]
    for row in gone:
        ChangingCatalogue(lambda: ids, start, tmp_path / "catalogue").push([], [row])
    fleet._follow_catalogue()
    assert [one.version for one in published.versions] == [1, 2]
    assert np.array_equal(published.versions[1].retired, [1, 3])
    assert f"catalogue: version 2 with {len(CODES) - 2} items, 2 retired" in capsys.readouterr().out
    (tmp_path / "catalogue" / "00003.parquet").write_text("no Parquet")
    fleet._follow_catalogue()
    assert "the catalogue stays as it is" in caplog.text and "00003.parquet" in caplog.text
    fleet._follow_catalogue()
    assert (fleet.failure, len(published.versions)) == (None, 2)
