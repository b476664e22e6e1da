"""`sluice doctor`: whether what a run directory holds is whole, and every prompt accounted for.

    checkpoints    their files against their sums; which one a resume goes on from
    journal        up to that checkpoint, played again: each prompt of the feed once, in its order
    accounting     issued = trained + stale + invalid + in flight, per epoch, and as the checkpoint says

It reads and changes nothing, and needs no cluster.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import RunError, SluiceError
from sluice.learner.batches.sources import open_prompts
from sluice.learner.training.checkpoint import RunState, find_fault, read_state
from sluice.learner.training.kept import list_checkpoints
from sluice.services.config import RunConfig
from sluice.services.config_resume import read_record
from sluice.services.operate.replay import Replay
from sluice.services.paths import ArmPaths, RunPaths

_COUNTS = ("issued", "trained", "stale", "invalid", "in_flight")


@dataclass(kw_only=True)
class Diagnosis:
    """What the doctor found."""

    checkpoints: dict[str, str] = field(default_factory=dict)  # its place in the run directory -> "step 40"
    usable: str | None = None  # the checkpoint that a resume goes on from
    epochs: list[dict[str, int]] = field(default_factory=list)  # prompts by epoch and fate
    counts: dict[str, int] = field(default_factory=dict)  # over all epochs
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be checked, and is no problem

    def lines(self) -> list[str]:
        """For the terminal."""
        told = [f"checkpoint  {place}: {fate}" for place, fate in self.checkpoints.items()]
        told += [f"epoch {row['epoch']}     {equation(row)}" for row in self.epochs]
        if len(self.epochs) > 1:
            told.append(f"all         {equation(self.counts)}")
        told += [f"note        {note}" for note in self.notes]
        told += [f"problem     {problem}" for problem in self.problems]
        if self.problems:
            end = f"{len(self.problems)} problem(s)"
            resume = f"a resume goes on from {self.usable}" if self.usable else "no checkpoint is whole"
            return [*told, f"{end}; {resume}"]
        return [*told, "sound: every checkpoint is whole, and every prompt is accounted for"]


def examine(run_directory: Path) -> Diagnosis:
    """Look at the post-training of a run.

    Raises:
        RunError: this is no run directory, or nothing has been trained there.
    """
    paths = RunPaths(run_directory.resolve())
    config = read_record(paths.root)
    if config is None:
        raise RunError(
            f"{run_directory} has no config.yaml: give the directory of a run, <output>/<name>-seed<seed>"
        )
    arm = paths.arm("train")
    diagnosis = Diagnosis()
    whole = _check_checkpoints(paths, arm, diagnosis)
    if not diagnosis.checkpoints:
        raise RunError(f"{run_directory} holds no checkpoint of a post-training")
    if whole:
        place, state = next(iter(whole.items()))
        diagnosis.usable = str(place.relative_to(paths.root))
        _check_journal(config, paths, arm.journal, state, diagnosis)
    return diagnosis


def _check_checkpoints(paths: RunPaths, arm: ArmPaths, diagnosis: Diagnosis) -> dict[Path, RunState]:
    """The states of those that are whole, the one that a resume goes on from first."""
    whole = {}
    for place in list_checkpoints(arm.kept, arm.best_checkpoint):
        name = str(place.relative_to(paths.root))
        fault = find_fault(place)
        if fault is None:
            whole[place] = read_state(place)
            diagnosis.checkpoints[name] = f"whole, step {whole[place].step}"
        else:
            diagnosis.checkpoints[name] = "damaged"
            diagnosis.problems.append(f"{name} is damaged: {fault}")
    return whole


def _check_journal(
    config: RunConfig, paths: RunPaths, journal: Path, state: RunState, diagnosis: Diagnosis
) -> None:
    source = state.source or {}
    if "feed" not in source:
        diagnosis.notes.append("no rollouts were trained on: there is no journal to check")
        return
    if not journal.is_file():
        diagnosis.notes.append(f"there is no {journal.name}: the run was made by a release that left none")
        return
    replay = Replay(source["feed"]["examples"], _feed(config, paths, source["feed"], diagnosis))
    try:
        replay.play(read_events(journal, state.journal_bytes))
    except (ValueError, KeyError, TypeError) as error:
        diagnosis.problems.append(f"{journal.name} cannot be read: {type(error).__name__}: {error}")
        return
    replay.finish()
    diagnosis.epochs, diagnosis.counts = replay.epochs(), replay.counts()
    diagnosis.problems += [f"{journal.name}, {problem}" for problem in replay.problems]
    if replay.more_problems:
        diagnosis.problems.append(f"{journal.name}: {replay.more_problems} further problems")
    _compare(replay, state, source, diagnosis)


def read_events(journal: Path, nbytes: int) -> Iterator[dict[str, Any]]:
    """The events in the first `nbytes` of a journal.

    Raises:
        ValueError: the file is shorter, or a line is no JSON.
    """
    with journal.open("rb") as file:
        while file.tell() < nbytes:
            line = file.readline()
            if not line:
                raise ValueError(f"it has {file.tell()} bytes, and the checkpoint was taken at {nbytes}")
            yield json.loads(line)


def _feed(
    config: RunConfig, paths: RunPaths, snapshot: dict[str, Any], diagnosis: Diagnosis
) -> Callable[[int], tuple[int, int]] | None:
    """What the feed has at a place; None, and a note, where the data are not there to say."""
    try:
        prompts = open_prompts(paths.data, config.learner.prompts_per_user, config.prompts_leave)
        feed = PromptFeed(prompts.users, prompts.positions, seed=snapshot["seed"])
    except (SluiceError, OSError) as error:
        diagnosis.notes.append(f"the order of the prompts was not checked: {error}")
        return None
    if len(prompts.users) != snapshot["examples"]:
        diagnosis.problems.append(
            f"the data have {len(prompts.users)} prompts, and the checkpoint was made with "
            f"{snapshot['examples']}"
        )
        return None
    return feed.example


def _compare(replay: Replay, state: RunState, source: dict[str, Any], diagnosis: Diagnosis) -> None:
    """The journal with what the checkpoint says."""
    if state.step > 0 and replay.steps != state.step:
        diagnosis.problems.append(
            f"the journal ends at step {replay.steps}, and the checkpoint is of step {state.step}"
        )
    counted = replay.counts()
    for name in ("issued", "trained", "stale", "invalid"):
        if counted[name] != (noted := source["counters"][name]):
            diagnosis.problems.append(
                f"the journal has {counted[name]} prompts {name}, and the checkpoint {noted}"
            )
    outstanding = sorted(row[0] for row in source["outstanding"])
    if replay.in_flight != outstanding:
        differing = sorted(set(replay.in_flight) ^ set(outstanding))
        diagnosis.problems.append(
            f"{len(differing)} prompts are in flight by the journal or by the checkpoint alone, the first "
            f"{differing[0]}"
        )


def equation(row: Mapping[str, int]) -> str:
    """Prompts by fate, as they have to add up."""
    trained, stale, invalid, in_flight = (row[name] for name in _COUNTS[1:])
    return (
        f"{row['issued']} issued = {trained} trained + {stale} stale + {invalid} invalid + {in_flight} in "
        "flight"
    )
