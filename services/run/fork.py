"""`--fork RUN_DIR[@STEP]`: a new run that goes on from a checkpoint of another one.

kept       the data and the start, which must be those of the config; the policy, its optimizer and random
           states, averages and reference; the count of steps and the curves so far; what was pushed to the
           catalogue; the ranker where its settings are the same; the place in the order of the prompts where
           the seed is the same
anew       the best checkpoint, which is the forked one at first; the control and other arms; the order of the
           prompts where the seed is another; the ranker where its settings are others
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sluice.catalog.errors import ConfigError, RunError
from sluice.catalog.files import directory_aside, read_whole_lines, write_atomically
from sluice.learner.evaluation.exposure import choosing_score
from sluice.learner.training.checkpoint import find_fault, read_state, rewrite_state
from sluice.learner.training.kept import list_checkpoints
from sluice.services.config import RunConfig
from sluice.services.config_resume import SettingChange, find_changes, read_record
from sluice.services.paths import RunPaths
from sluice.services.run import arms, inputs, leftovers, manifest

_RECORD = "fork.json"
# Beside what may differ when a run is resumed. The prompts of a deterministic run count from its first step,
# in the order of one seed.
_MAY_DIFFER = ("name", "seed", "ranker")


@dataclass(frozen=True, kw_only=True)
class ForkPoint:
    """A checkpoint of another run."""

    run_directory: Path
    step: int | None  # None: the last one

    @classmethod
    def parse(cls, text: str) -> "ForkPoint":
        """From `RUN_DIR` or `RUN_DIR@STEP`."""
        directory, at, step = text.rpartition("@")
        if at and step.isdecimal():
            return cls(run_directory=Path(directory), step=int(step))
        return cls(run_directory=Path(text), step=None)


def fork_run(config: RunConfig, point: ForkPoint) -> str:
    """Fill the run directory of `config`, so that it goes on as a resumed run does; returns what to print.

    The checkpoint is laid down last: a fork that is interrupted can be made again.

    Raises:
        ConfigError: the config changes what a fork must not change, or has no step left.
        RunError: there is no such run or checkpoint, its data are others, or it is damaged.
    """
    paths, source = RunPaths.of(config), RunPaths(point.run_directory.expanduser().resolve())
    before = _check_fits(config, paths, source)
    checkpoint = _find_checkpoint(source, point)
    step = read_state(checkpoint).step
    if config.learner.steps <= step:
        raise ConfigError(
            f"learner.steps {config.learner.steps} leaves no step after the fork at step {step}: raise it"
        )
    manifest.write_manifest(config, paths.root)
    arms.discard_training(config, paths)
    for place in (paths.ranker, paths.ranker_halves, paths.catalogue):
        shutil.rmtree(place, ignore_errors=True)
    taken = [(source.data, paths.data), (source.policy, paths.policy), (source.catalogue, paths.catalogue)]
    if config.ranker == before.ranker:
        taken += [(source.ranker, paths.ranker), (source.ranker_halves, paths.ranker_halves)]
    for origin, place in taken:
        if origin.is_dir():
            _copy(origin, place)
    record = {"run": str(source.root), "checkpoint": checkpoint.name, "step": step}
    write_atomically(paths.root / _RECORD, json.dumps(record, indent=1) + "\n")
    _lay_down(config, before, source, checkpoint, paths)
    return f"forked from {source.root} at step {step}"


def _check_fits(config: RunConfig, paths: RunPaths, source: RunPaths) -> RunConfig:
    """The config of the other run, which this one fits."""
    before = read_record(source.root)
    if before is None:
        raise RunError(f"--fork: {source.root} is no run directory: it has no config.yaml")
    if source.root == paths.root:
        raise ConfigError(f"--fork: {source.root} is the run itself: give another name, seed or output")
    may_differ = [name for name in _MAY_DIFFER if name != "seed" or not config.deterministic]
    refused = [change for change in find_changes(before, config) if _is_refused(change, may_differ)]
    if refused:
        raise ConfigError(
            f"--fork: the checkpoints of {source.root} do not fit this config:\n"
            + "".join(f"  {change} ({change.reason})\n" for change in refused)
            + "Undo these changes, or start a new run without --fork."
        )
    leftovers.check_same_data(config, source)
    inputs.check_unchanged(before, source)
    return before


def _is_refused(change: SettingChange, may_differ: Iterable[str]) -> bool:
    return bool(change.reason) and not any(
        change.field == name or change.field.startswith(f"{name}.") for name in may_differ
    )


def _find_checkpoint(source: RunPaths, point: ForkPoint) -> Path:
    arm = source.arm("train")
    steps: dict[int, Path] = {}
    faults = []
    for checkpoint in list_checkpoints(arm.kept, arm.best_checkpoint):
        if fault := find_fault(checkpoint):
            faults.append(f"{checkpoint.name} is damaged: {fault}")
        else:
            steps.setdefault(read_state(checkpoint).step, checkpoint)
    chosen = next(iter(steps), None) if point.step is None else point.step
    if chosen not in steps:
        at = "" if point.step is None else f" at step {point.step}"
        have = f"there are those of steps {', '.join(map(str, sorted(steps)))}" if steps else "there is none"
        told = "".join(f"; {fault}" for fault in faults)
        raise RunError(
            f"--fork: {source.root} has no checkpoint{at} that is whole; {have}{told}. A run keeps the last "
            "learner.keep_last checkpoints and the best one"
        )
    return steps[chosen]


def _lay_down(
    config: RunConfig, before: RunConfig, source: RunPaths, checkpoint: Path, paths: RunPaths
) -> None:
    """The curves until the checkpoint, then the checkpoint, in the place from which a run goes on."""
    state = read_state(checkpoint)
    own, other = paths.arm("train"), source.arm("train")
    write_atomically(own.metrics, other.metrics.read_bytes()[: state.metrics_bytes])
    same_prompts = config.seed == before.seed
    if same_prompts and state.journal_bytes:
        write_atomically(own.journal, other.journal.read_bytes()[: state.journal_bytes])
    rows = [json.loads(line) for line in read_whole_lines(paths.arm("train").metrics).lines]
    scores = [row for row in rows if row["kind"] == "eval" and row["step"] == state.step]
    state = dataclasses.replace(
        state,
        best=choosing_score(scores[-1], config.evaluation) if scores else (-1.0, -1.0),
        since_best=0,
        source=state.source if same_prompts else None,
        journal_bytes=state.journal_bytes if same_prompts else 0,
    )
    with directory_aside(paths.arm("train").best_checkpoint) as fresh:
        _fill(checkpoint, fresh)
        if fault := find_fault(fresh):
            raise RunError(f"--fork: {checkpoint} changed while it was copied: {fault}; try again")
        rewrite_state(fresh, state)


def _copy(origin: Path, place: Path) -> None:
    with directory_aside(place) as fresh:
        _fill(origin, fresh)


def _fill(origin: Path, fresh: Path) -> None:
    try:
        shutil.copytree(origin, fresh, dirs_exist_ok=True)
    except (shutil.Error, FileNotFoundError) as error:
        raise RunError(f"--fork: {origin} changed while it was copied: {error}; try again") from None
