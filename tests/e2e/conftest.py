"""A tiny job: the real engine, ranker and learner on a written-out log."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.tiny_data import tiny_dataset

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 120
JOB_TIMEOUT_S = 900  # a guard against hanging: a run takes a minute and a half


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a run that takes seconds once its processes are up; its output lies beside it."""
    directory = tmp_path_factory.mktemp("job")
    settings = tiny_dataset(directory).settings
    config = {
        "name": "tiny",
        "output": str(directory / "runs"),
        "data": settings.model_dump(mode="json"),
        "policy": {"hidden_size": 64, "layers": 1, "heads": 2, "feed_forward_size": 64},
        "pretrain": {"epochs": 6, "batch_interactions": 48, "validate_every": 3},
        "ranker": {"ensemble": 1, "epochs": 6, "hidden_size": 16, "batch_interactions": 64},
        "rollout": {"decode": {"candidates": 6}, "prompts_per_lease": 6, "distractors": 2, "cpus": 0.8},
        "ranker_pool": {"cpus": 0.2},
        "queue": {"max_groups": 36, "max_staleness": 2},
        "weights": {"publish_every": 2},
        "objective": {"type": "adagrpo", "gate": {"tau": 0.5, "rho": 0.5}},
        "learner": {"steps": 8, "prompts_per_step": 6, "evaluate_every": 4, "warmup_steps": 1, "lr": 1e-3},
        "evaluation": {"beam_width": 10},
    }
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Ray's files apart from those of any cluster that runs on this machine; the path is short for socket
    names.
    """
    directory = tempfile.mkdtemp(prefix="sl-", dir="/tmp")
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLUICE_", "VLLM_"))
    }
    yield inherited | {
        "RAY_TMPDIR": directory,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    shutil.rmtree(directory, ignore_errors=True)


def run(arguments: list[str], environment: dict[str, str], directory: Path = ROOT) -> str:
    """Run a command, in the checkout by default; its output. Fails with that output when the command does."""
    started = subprocess.Popen(
        arguments, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output = "".join(started.communicate(timeout=JOB_TIMEOUT_S))
    except subprocess.TimeoutExpired:
        started.terminate()  # `sluice submit` stops the cluster that it has started
        output = "".join(started.communicate(timeout=STOP_TIMEOUT_S))
        raise AssertionError(f"no end after {JOB_TIMEOUT_S} s:\n{output[-6000:]}") from None
    assert started.returncode == 0, f"exit code {started.returncode}:\n{output[-6000:]}"
    return output
