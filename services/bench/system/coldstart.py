"""From `sluice submit` to the first optimizer step of the post-training, by phase.

Data, policy and ranker are there already, as they are for a run that is started again; the Ray head is not.
Each time a fresh run directory gets a copy of them, `sluice submit` is started as a user would, and the run
directory is watched. After the first step the command is told to end (SIGTERM), which stops the job and the
head.

submit_s: until the job's driver works: start of the head with its dashboard, upload, start of the driver
learner_s: until the learner is there: placement, start of its worker, loading of policy and data validate_s:
until the policy that the run begins with is validated first_step_s: until the first step is done; engines and
rankers started beside all of it since the driver began engines_s: from the driver's beginning until the
engines were ready, as the job's log says; beside the phases above
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sluice.catalog.errors import RunError
from sluice.services.bench.harness import BenchOptions, print_note
from sluice.services.bench.support.artefacts import make_artefacts
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.metrics_file import last_metrics

PHASES = ("submit", "learner", "validate", "first_step")
_START_S = 300.0
_END_S = 60.0
_POLL_S = 0.02


def run(options: BenchOptions) -> dict[str, Any]:
    """`repeats` cold starts after one that is not counted; nothing of Ray may be running on the machine."""
    repeats = 1 if options.quick else options.repeats
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        scratch = Path(name)
        made = make_artefacts(_config(scratch / "made", options.seed))
        runs = []
        for number in range(repeats + 1):
            config = _config(scratch / f"run-{number}", options.seed)
            for place in (made.data, made.policy, made.ranker):
                shutil.copytree(place, RunPaths.of(config).root / place.name)
            runs.append(_start(config, scratch / f"run-{number}.yaml", scratch))
            print_note(f"start {number} of {repeats}: {sum(runs[-1][phase] for phase in PHASES):.1f} s")
    middle = {phase: statistics.median(start[phase] for start in runs[1:]) for phase in (*PHASES, "engines")}
    return {
        "total_s": round(statistics.median(sum(start[phase] for phase in PHASES) for start in runs[1:]), 2),
        "phases": {f"{phase}_s": round(middle[phase], 2) for phase in PHASES},
        "engines_s": round(middle["engines"], 2),
    }


def _config(output: Path, seed: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "coldstart",
            "seed": seed,
            "output": str(output),
            "policy": {"hidden_size": 64, "layers": 2, "heads": 2, "feed_forward_size": 192},
            "pretrain": {"epochs": 0},
            "ranker": {"ensemble": 1, "epochs": 1, "hidden_size": 64},
            "rollout": {"decode": {"candidates": 16}, "cpus": 0.8},
            "ranker_pool": {"cpus": 0.2},
            "learner": {"prompts_per_step": 16},
            "evaluation": {"max_users": 200},
        }
    )


def _start(config: RunConfig, file: Path, scratch: Path) -> dict[str, float]:
    """Seconds of every phase of one start."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    # A Ray of its own, so that no head that runs on the machine is joined.
    environment = os.environ | {"RAY_TMPDIR": str(scratch / "ray"), "SLUICE_PROGRESS": "plain"}
    (scratch / "ray").mkdir(exist_ok=True)
    paths, log = RunPaths.of(config), _Log()
    began_s = time.monotonic()
    command = [sys.executable, "-m", "sluice", "submit", "--config", str(file)]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    reader = threading.Thread(target=log.read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        times = [began_s]
        for is_there in (
            (paths.root / "manifest.json").exists,
            lambda: _has(paths, "start"),
            lambda: _has(paths, "eval"),
            lambda: _has(paths, "step"),
        ):
            times.append(_wait(is_there, process, log))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(timeout=_END_S)
    seconds = {phase: after - before for phase, before, after in zip(PHASES, times, times[1:], strict=False)}
    return seconds | {"engines": log.engines_s - times[1]}


class _Log:
    """The command's output, and when it said that the engines were there."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.engines_s = float("nan")

    def read(self, stream: Any) -> None:
        """Until the command ends."""
        for line in stream:
            self.lines.append(line)
            if line.startswith("engines: done"):
                self.engines_s = time.monotonic()


def _wait(is_there: Callable[[], bool], process: subprocess.Popen[str], log: _Log) -> float:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        if is_there():
            return time.monotonic()
        if process.poll() is not None:
            break
        time.sleep(_POLL_S)
    raise RunError("the run did not make its first step:\n" + "".join(log.lines[-20:]))


def _has(paths: RunPaths, kind: str) -> bool:
    return last_metrics(paths.arm("train").metrics, kind) is not None
