"""A run from a user's folder, which has packages called like ours and the user's ranker in one of them."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

# Whoever imports these by their bare names gets the user's, and falls over.
FOREIGN = ("actors", "catalog", "cluster", "services")
RANKER = '''
from pathlib import Path

import numpy as np


class Mine:
    """Prefers items of low rows, and says which file it was loaded from."""

    version = "mine"

    def __init__(self, dataset, seen_at):
        Path(seen_at).write_text(__file__)
        self._items = dataset.items

    def score(self, histories, candidates):
        return np.where(candidates < 0, np.nan, 1 - candidates / self._items).astype(np.float32)
'''


@pytest.fixture
def folder(job: Path, tmp_path: Path) -> Path:
    """The user's folder, with a config that takes the ranker in it."""
    folder = tmp_path / "shop"
    for name in (*FOREIGN, "learner"):
        (folder / name).mkdir(parents=True)
        raises = "" if name == "learner" else f'raise ImportError("this is the {name} package of the user")\n'
        (folder / name / "__init__.py").write_text(raises)
    (folder / "learner" / "mine.py").write_text(RANKER)
    config = yaml.safe_load(job.read_text())
    config["output"] = str(tmp_path / "runs")
    config["ranker"] = {"use": "learner.mine:Mine", "options": {"seen_at": str(tmp_path / "ranker.txt")}}
    config["rollout"]["engine"] = {"type": "tree"}
    config["learner"] |= {"steps": 4, "evaluate_every": 2}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def installed(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has installed this code: `sluice` alone is on the path."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sluice").symlink_to(ROOT / "sluice")
    return environment | {"PYTHONPATH": str(site)}


def test_a_folder_with_packages_of_the_same_names_runs_a_whole_job(
    folder: Path, installed: dict[str, str], tmp_path: Path
):
    output = run([sys.executable, "-m", "sluice", "submit", "--config", "mine.yaml"], installed, folder)
    directory = tmp_path / "runs" / "tiny-seed0"
    assert (directory / "report.html").is_file(), output[-6000:]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["throughput"]["learner_steps"] == 4
    assert {"start", "best", "ranker"} <= set(summary["metrics"])
    loaded = Path((tmp_path / "ranker.txt").read_text())
    assert loaded.parts[-2:] == ("learner", "mine.py") and not loaded.is_relative_to(ROOT)
