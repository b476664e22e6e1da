"""Which engine a rollout actor opens, and what its process needs for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import RolloutSettings, TreeEngineSettings, VllmEngineSettings
from sluice.catalog.data.changes import ChangingCatalogue, ItemRow
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_variables, open_engine
from sluice.services.run.fleet import CatalogueFeed
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


def test_what_is_pushed_is_published_and_a_change_that_cannot_be_read_does_not_end_the_run(
    tmp_path, caplog, capsys
):
    start = Vocabulary.of(CODES, LAYOUT)
    ids = [f"i{row}" for row in range(len(CODES))]
    published = Published()
    feed = CatalogueFeed(published, ChangingCatalogue(lambda: ids, start, tmp_path / "catalogue"))
    feed.follow()
    assert published.versions == []
    gone = [ItemRow(where="row 1", item_id=item_id, codes=None) for item_id in ("i1", "i3")]
    for row in gone:
        ChangingCatalogue(lambda: ids, start, tmp_path / "catalogue").push([], [row])
    feed.follow()
    assert [one.version for one in published.versions] == [1, 2]
    assert np.array_equal(published.versions[1].retired, [1, 3])
    assert f"catalogue: version 2 with {len(CODES) - 2} items, 2 retired" in capsys.readouterr().out
    (tmp_path / "catalogue" / "00003.parquet").write_text("no Parquet")
    feed.follow()
    assert "the catalogue stays as it is" in caplog.text and "00003.parquet" in caplog.text
    feed.follow()
    assert (feed.changes, len(published.versions)) == (None, 2)
