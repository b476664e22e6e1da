"""Which engine a rollout actor opens, and what its process needs for it."""

import subprocess
import sys
from pathlib import Path

from actors.settings import EngineSettings, RolloutSettings, TreeEngineSettings
from actors.tree_engine import TreeEngine
from catalog.vocabulary import Vocabulary
from learner.policy import build_policy, save_policy
from learner.settings import PolicySettings
from services.config import RunConfig
from services.fleet import _environment, open_engine
from services.paths import RunPaths
from tests.tiny_data import tiny_dataset

ROOT = Path(__file__).parents[2]


def config(engine):
    return RunConfig(name="tiny", rollout=RolloutSettings(engine=engine))


def test_only_vllm_needs_an_environment():
    assert _environment(config(TreeEngineSettings(threads=2))) == {}
    assert _environment(config(EngineSettings(threads=2)))["OMP_NUM_THREADS"] == "2"


def test_the_tree_engine_is_opened_on_the_runs_policy_and_catalogue(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path)
    policy = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), dataset.level_sizes, 64, 0)
    save_policy(policy, tmp_path / "policy")
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    chosen = config(TreeEngineSettings(prompts_per_step=5))
    engine = open_engine(chosen, RunPaths(tmp_path), lambda: vocabulary, seed=3)
    assert isinstance(engine, TreeEngine) and (engine.version, engine.in_flight) == (0, 0)
    assert "engine prompts_per_step = 5: given in the settings" in capsys.readouterr().out
    engine.close()


def test_the_tree_engine_loads_neither_vllm_nor_ray():
    script = "import sys, actors.tree_engine\nprint(sorted({'ray', 'vllm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
