"""`sluice config check --deep`, and the same check at the head of `sluice submit`: seconds, and no Ray."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.tiny_data import tiny_dataset

ROOT = Path(__file__).parents[4]
LONGEST_S = 120.0  # three to five on a machine that does nothing else
WRONG = (
    "import numpy as np\n"
    "class Wrong:\n"
    "    version = 1\n"
    "    def __init__(self, dataset):\n"
    "        pass\n"
    "    def score(self, histories, candidates):\n"
    "        return np.zeros(candidates.shape)\n"
)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A working directory with a log, a config and a ranker that is wrong in two ways."""
    data = tiny_dataset(tmp_path / "data").settings.model_dump(mode="json")
    data["semantic_ids"]["level_sizes"] = [5, 4]
    config = {
        "name": "mine",
        "data": data,
        "rollout": {"decode": {"candidates": 8}, "cpus": 0.1, "engine": {"type": "tree"}},
        "ranker_pool": {"cpus": 0.1},
        "cluster": {"learner_cpus": 0.1},
        "evaluation": {"beam_width": 10},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "my_ranker.py").write_text(WRONG)
    return tmp_path


@pytest.fixture
def ray_files() -> Iterator[Path]:
    """Where a head would write; the path is short for socket names."""
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as name:
        yield Path(name)


def sluice(directory: Path, ray_files: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in `directory`, where no head runs."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLUICE_"))}
    own |= {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray_files), "RAY_AUTH_MODE": "disabled"}
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sluice", *arguments],
        cwd=directory,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - started_s < LONGEST_S
    return done.returncode, done.stdout, done.stderr


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_a_wrong_ranker_ends_submit_before_ray_starts(mine: Path, ray_files: Path):
    code, _, told = sluice(
        mine, ray_files, "submit", "--config", "run.yaml", "--set", "ranker.use=my_ranker:Wrong"
    )
    assert code == 2
    version, score = errors(told)
    assert version.startswith("error: ranker.use 'my_ranker:Wrong': version 1 (int); must be: text")
    assert "score the ranker gave 0.0 to item -1" in score
    assert "Traceback" not in told and "starting a local Ray head" not in told
    assert list(ray_files.iterdir()) == [] and not (mine / "runs").exists()


def test_a_deep_check_says_that_a_run_may_start_or_what_is_wrong(mine: Path, ray_files: Path):
    code, out, _ = sluice(mine, ray_files, "config", "check", "--deep", "run.yaml")
    assert (code, out) == (0, "run.yaml: the run may start\n")
    changes = ["--set", "rollout.cpus=1000", "--set", "output=run.yaml"]
    code, out, _ = sluice(mine, ray_files, "config", "check", "--deep", "run.yaml", *changes)
    assert code == 2
    fields = [line.split(": ")[1] for line in errors(out)]
    assert fields == ["output", "rollout.cpus", "cluster"]
