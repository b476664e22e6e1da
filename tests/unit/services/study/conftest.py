"""A study of a tiny log, run in this process: the jobs are called where a cluster would run them."""

import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sluice.services.progress import Reporter
from sluice.services.study import run as study_run
from sluice.services.study.settings import load_study
from tests.tiny_data import tiny_dataset


def no_progress(done: int, total: int, fields: dict[str, float]) -> None:
    """What a job reports to here."""


def run_here(jobs: Mapping[str, Any], _cluster: object, watch: Any) -> dict[str, Any]:
    """In the place of `run_tasks`."""
    results = {}
    for name, job in jobs.items():
        results[name] = job(no_progress)
        watch(name, (1, 1, {}), True)
    return results


def write_study(directory: Path, **changes: Any) -> Path:
    """The study's file, with the run's config that it needs beside it."""
    settings = tiny_dataset(directory).settings
    config = {
        "name": "tiny",
        "data": settings.model_dump(mode="json"),
        "policy": {"hidden_size": 64, "layers": 1, "heads": 2, "feed_forward_size": 64},
        "pretrain": {"epochs": 2, "batch_interactions": 48, "validate_every": 2},
        "ranker": {"ensemble": 1, "epochs": 2, "hidden_size": 16, "batch_interactions": 64},
        "rollout": {"decode": {"candidates": 6}, "prompts_per_lease": 4, "distractors": 2},
        "objective": {"type": "adagrpo", "gate": {"tau": 0.5, "parts": "difficulty"}},
        "learner": {"steps": 4, "prompts_per_step": 6, "evaluate_every": 2, "warmup_steps": 1, "lr": 1e-3},
        "evaluation": {"beam_width": 10},
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(config))
    study = {
        "name": "small",
        "output": str(directory / "studies"),
        "seeds": [0, 1],
        "sets": {"tiny": {"config": str(directory / "run.yaml")}},
        "arms": {
            "nll": {"set": ["objective={type: nll}"]},
            "mixture": {"set": ["objective={type: mixture, weight: 2}"]},
            "heavy": {"set": ["objective={type: mixture, weight: 50}"]},
            "gate": {},
            "random": {"rate_of": "gate"},
            "trust": {"set": ["objective.gate={parts: trust, trust: {at_least: 1, above: 0.5}}"]},
        },
        "against": ["nll", "best-mixture"],
        "best_of": {"best-mixture": ["mixture", "heavy"]},
    }
    path = directory / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A study that is done: its settings and what failed."""
    path = write_study(tmp_path_factory.mktemp("study"), strata=["gate"], judge={"members": 2, "steps": 2})
    study = load_study(path)
    with pytest.MonkeyPatch.context() as patch, Reporter.for_stream(io.StringIO()) as reporter:
        patch.setattr(study_run, "run_tasks", run_here)
        failed = study_run.run_study(study, reporter)
    return SimpleNamespace(study=study, failed=failed, path=path)
