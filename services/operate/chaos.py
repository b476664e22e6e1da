"""`sluice chaos`: a run that is hit by faults at random moments, beside the same run left alone.

    a cluster of its own, on this machine
    the run left alone          -> its weights and metrics
    the run, with `faults` faults: each at a step that the seed decides, once the one before has been
    got over                    -> how soon what was hit was there again, and how soon a step was trained
    sluice doctor               -> lost and doubled prompts, damaged checkpoints

Both runs have the faulty ranker (`sluice.services.operate.faulty_ranker`) in the place of their own. A run
that ends by itself is started again, as whatever retries a job would do it.
"""

import contextlib
import functools
import json
import logging
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil
import ray

from sluice.catalog.errors import RunError
from sluice.catalog.files import sha256_of, write_atomically
from sluice.services.config import RunConfig
from sluice.services.operate.doctor import equation, examine
from sluice.services.operate.faults import DRIVER, FAULTS, Fault, Injury, find_processes, inject
from sluice.services.operate.faulty_ranker import FaultyRanker
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress
from sluice.services.run.metrics_file import last_metrics

_POLL_S = 0.2  # a look at all processes takes some milliseconds
_RECOVERY_S = 300.0  # longest wait for a step after a fault
_END_S = 1800.0  # longest wait for the end of the run, once all faults are in
_SLOW_S = 5.0  # how long a slow ranker stays so
_STEPS_PER_FAULT = 12


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One fault and what came after it."""

    fault: str
    step: int
    replaced_s: float | None  # until what was hit was there again; None: nothing had to be
    trained_s: float | None  # until a step was trained after that; None: none was


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a chaos run showed."""

    hits: tuple[Hit, ...]
    starts: int  # of the run: 1, and one for each time that it ended before its end
    counts: dict[str, int]  # of prompts, by the doctor
    problems: tuple[str, ...]  # by the doctor, but for the checkpoints that the faults damaged
    same_weights: bool
    metrics: dict[str, dict[str, float]]  # of the last policy: disturbed, undisturbed

    @property
    def sound(self) -> bool:
        """Every fault was got over, and nothing is lost, doubled or damaged."""
        return not self.problems and all(hit.trained_s is not None for hit in self.hits)


def overrides_of(config: RunConfig, faults: int, control: Path) -> list[str]:
    """What both runs have in the place of the config's own settings."""
    return [
        f"learner.steps={max(config.learner.steps, faults * _STEPS_PER_FAULT + _STEPS_PER_FAULT)}",
        "cluster.max_actor_restarts=1000",
        "cluster.max_learner_restarts=1000",
        "cluster.hang_timeout_s=10",
        "queue.max_prompt_failures=1000",  # these faults are nobody's
        f"ranker.use={FaultyRanker.__module__}:{FaultyRanker.__qualname__}",
        f"ranker.options={{control: {json.dumps(str(control))}}}",
    ]


def run_chaos(
    config: RunConfig,
    arguments: Sequence[str],
    *,
    faults: int,
    kinds: Sequence[str],
    directory: Path,
    progress: Progress,
) -> Outcome:
    """Run it; the cluster is there, started by this process.

    Args:
        config: of the run, with `overrides_of` applied.
        arguments: of `sluice train`, so that it reads that config, but for `output`.
        faults: how many.
        kinds: names of `FAULTS`, which come equally often.
        directory: for both runs, and `chaos.json`.
        progress: of the faults.

    Raises:
        RunError: a run came to no end.
    """
    drawn = _draw(config.seed, faults, kinds)
    runs = {}
    for name in ("undisturbed", "disturbed"):
        output = directory / name
        paths = RunPaths.of(config.model_copy(update={"output": str(output)}))
        if paths.root.exists():
            raise RunError(f"{paths.root} is there already: remove it, or give another --output")
        runs[name] = _Run([*arguments, "--set", f"output={output}"], paths, directory / f"{name}.log")
    try:
        runs["undisturbed"].finish()
        control = directory / "control"
        hits = _disturb(runs["disturbed"], drawn, random.Random(config.seed), control, progress)
        runs["disturbed"].finish()
    finally:
        for run in runs.values():
            run.kill()
    diagnosis = examine(runs["disturbed"].paths.root)
    problems = [
        problem
        for problem in diagnosis.problems
        if not any(name in problem for name in runs["disturbed"].damaged)
    ]
    weights = {name: sha256_of(run.paths.last / "model.safetensors") for name, run in runs.items()}
    outcome = Outcome(
        hits=tuple(hits),
        starts=runs["disturbed"].starts,
        counts=diagnosis.counts,
        problems=tuple(problems),
        same_weights=weights["disturbed"] == weights["undisturbed"],
        metrics={name: run.metrics() for name, run in runs.items()},
    )
    write_atomically(directory / "chaos.json", json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome


def _draw(seed: int, faults: int, kinds: Sequence[str]) -> list[tuple[int, Fault]]:
    """The faults, each with the step that it comes after."""
    draw = random.Random(seed)
    order: list[str] = []
    while len(order) < faults:
        order += draw.sample(list(kinds), len(kinds))
    return [
        (number * _STEPS_PER_FAULT + draw.randrange(1, _STEPS_PER_FAULT), FAULTS[name])
        for number, name in enumerate(order[:faults])
    ]


class _Run:
    """`sluice train` in a process of its own, started again when it ends before its end."""

    def __init__(self, arguments: Sequence[str], paths: RunPaths, log: Path) -> None:
        self.paths, self.starts = paths, 0
        self.damaged: list[str] = []  # checkpoints, by a fault
        self._command = [sys.executable, "-m", "sluice", "train", *arguments, "--resume", "auto"]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def keep_going(self) -> None:
        """Start it, if it is not at work and has not come to its end."""
        if self._process is not None and self._process.poll() in (None, 0):
            return
        self.starts += 1
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=_environment(), start_new_session=True
            )

    @property
    def ended(self) -> bool:
        """It has come to its end."""
        return self._process is not None and self._process.poll() == 0

    def kill(self) -> None:
        """End the driver at once, if it is there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            RunError: it did not come.
        """
        end_s = time.monotonic() + _END_S
        while not self.ended:
            self.keep_going()
            if time.monotonic() > end_s:
                raise RunError(f"{self.paths.root} came to no end within {_END_S:.0f} s: see {self._log}")
            time.sleep(_POLL_S)

    def last_step(self) -> tuple[int, bool]:
        """The step trained last, and whether nothing was written after it."""
        last = last_metrics(self.paths.arm("train").metrics)
        step = last_metrics(self.paths.arm("train").metrics, "step")
        return (step["step"] if step else 0), last is not None and last["kind"] == "step"

    def metrics(self) -> dict[str, float]:
        """What the last policy reaches on test."""
        told: dict[str, float] = json.loads(self.paths.summary.read_text())["metrics"]["last"]
        return {name: told[name] for name in ("hr@10", "ndcg@10", "hallucination")}


def _environment() -> dict[str, str]:
    address = ray.get_runtime_context().gcs_address
    return {**os.environ, "RAY_ADDRESS": address}


def _disturb(
    run: _Run, drawn: list[tuple[int, Fault]], draw: random.Random, control: Path, progress: Progress
) -> list[Hit]:
    hits: list[Hit] = []
    for step, fault in drawn:
        if not _wait_for(functools.partial(_is_past, run, step), run) or run.ended:
            break
        hit = _hit(run, fault, draw, control)
        if hit is None:
            continue
        hits.append(hit)
        progress(len(hits), len(drawn), {})
        if hit.trained_s is None:
            break
    return hits


def _is_past(run: _Run, step: int) -> bool:
    return run.ended or run.last_step()[0] >= step


def _hit(run: _Run, fault: Fault, draw: random.Random, control: Path) -> Hit | None:
    """Inject a fault and see the run get over it; None when what it hits is not there."""
    step = run.last_step()[0]
    kept = run.paths.arm("train").kept
    injury = Injury()

    def happened() -> bool:
        nonlocal injury
        try:
            injury = inject(fault, draw.randrange, control, kept)
        except LookupError:
            return run.ended
        return True

    if not _wait_for(happened, run) or run.ended:
        return None
    victim = injury.victim
    if injury.damaged is not None:
        run.damaged.append(injury.damaged.name)
    began_s = time.monotonic()
    if fault.victim == DRIVER:
        run.kill()
    replaced_s = None
    if victim is not None:
        _wait_for(lambda: _is_replaced(victim, fault.victim), run)
        replaced_s = round(time.monotonic() - began_s, 2)
    elif fault.ranker == "slow":
        time.sleep(_SLOW_S)
        control.unlink(missing_ok=True)
    before = run.last_step()[0]
    trained = _wait_for(lambda: run.ended or (run.last_step()[1] and run.last_step()[0] != before), run)
    control.unlink(missing_ok=True)
    return Hit(
        fault=fault.name,
        step=step,
        replaced_s=replaced_s,
        trained_s=round(time.monotonic() - began_s, 2) if trained else None,
    )


def _is_replaced(victim: psutil.Process, name: str) -> bool:
    gone = True
    with contextlib.suppress(psutil.NoSuchProcess):
        gone = not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    return gone and any(process.pid != victim.pid for process in find_processes(name))


def _wait_for(condition: Callable[[], bool], run: _Run) -> bool:
    """Whether it came to hold; the run is kept going meanwhile."""
    end_s = time.monotonic() + _RECOVERY_S
    while not condition():
        run.keep_going()
        if time.monotonic() > end_s:
            return False
        time.sleep(_POLL_S)
    return True


def show(outcome: Outcome, stream: TextIO) -> None:
    """The table of faults, and what the doctor and the metrics say."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=stream, highlight=False, soft_wrap=True)
    table = Table("fault", "hits", "replaced after, s", "trained after, s", title="Faults")
    for name in dict.fromkeys(hit.fault for hit in outcome.hits):
        own = [hit for hit in outcome.hits if hit.fault == name]
        table.add_row(
            name,
            str(len(own)),
            _range([hit.replaced_s for hit in own]),
            _range([hit.trained_s for hit in own]),
        )
    console.print(table)
    console.print(f"prompts: {equation(outcome.counts)}; the run was started {outcome.starts} times")
    for problem in outcome.problems:
        console.print(f"problem: {problem}")
    for name, metrics in outcome.metrics.items():
        told = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
        console.print(f"{name}: {told}")
    console.print(f"the same weights as undisturbed: {'yes' if outcome.same_weights else 'no'}")
    console.print("sound: nothing lost, doubled or damaged" if outcome.sound else "NOT sound")


def _range(seconds: Sequence[float | None]) -> str:
    known = sorted(value for value in seconds if value is not None)
    missing = len(seconds) - len(known)
    told = " to ".join(dict.fromkeys(f"{value:.1f}" for value in (known[:1] + known[-1:])))
    return told + (f" ({missing} never)" if missing and known else "")


def start_cluster(config: RunConfig) -> None:
    """A cluster of this process, which ends with it."""
    needed = (
        config.rollout.actors * config.rollout.cpus
        + config.ranker_pool.actors * config.ranker_pool.cpus
        + config.learner.workers * config.cluster.learner_cpus
    )
    ray.init(
        address="local",
        num_cpus=max(2, math.ceil(needed)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace="sluice",
    )
