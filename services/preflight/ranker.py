"""A user's ranker before a run: imported and called on three prompts, in a process that can be ended.

The prompts are those of the prepared data where they fit the config, else of a sample of the log. The process
starts where the command does, so it imports what the job will. Its standard input is a pipe that nobody
writes to: the process ends when the pipe does, so that it does not outlive a command that was killed.

A ranker may be slow and right. Each stage has a limit, and what takes long is told before it is reached.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice.catalog.data.dataset import read_manifest
from sluice.catalog.errors import DataError
from sluice.catalog.files import read_whole_lines, write_atomically
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.preflight.finding import Finding
from sluice.services.preflight.ranker_process import ANSWER, QUESTION

_MODULE = "sluice.services.preflight.ranker_process"
_POLL_S = 0.05
PREPARE_S = 180.0  # to open the data or to sample the log
LOAD_S = 180.0
TELL_S = 3.0  # after which a stage is told


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The longest that each stage of the process may take, in seconds."""

    data: float = PREPARE_S
    load: float = LOAD_S
    call: float

    def of(self, stage: str) -> float:
        """Of one stage."""
        limit: float = getattr(self, stage)
        return limit


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the process ended."""

    stage: str  # the last one that began
    hung: bool = False  # it was ended at the stage's limit
    breaches: list[dict[str, str]] | None = None
    in_sample: bool = False  # trust would be measured on logs that the ranker may have learned from
    error: str | None = None  # what stopped it: of the data or of loading
    output: list[str] = field(default_factory=list)  # the last lines that it printed


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check_ranker(
    config: RunConfig, limits: Limits | None = None, tell: Callable[[str], None] = _tell
) -> Iterator[Finding]:
    """Try the user's ranker; nothing for the built-in one, which is fitted by the run.

    `tell` is given a line when a stage takes longer than `TELL_S`.
    """
    if config.ranker.use == "builtin":
        return
    limits = limits or Limits(call=config.ranker_pool.timeout_s)
    yield from judge_outcome(config.ranker.use, _run(config, limits, tell), limits)


def judge_outcome(use: str, outcome: Outcome, limits: Limits) -> Iterator[Finding]:
    """What the end of the process says of the ranker `use`."""
    for breach in outcome.breaches or ():
        yield Finding(
            field=f"ranker.use {use!r}",
            value=f"{breach['part']} {breach['value']}",
            bound=breach["bound"],
            remedy=breach["remedy"],
        )
    if outcome.in_sample:
        yield Finding(
            field=f"ranker.use {use!r}",
            value="takes no argument without_users, so that objective.gate.trust is in sample: a ranker "
            "places what it learned from better than it places the rest",
            bound="a class that is fitted without the users that it is given as without_users",
            remedy="give it the argument, or take trust for an upper bound and set "
            "objective.gate.trust.above higher",
            exit_code=0,
        )
    if outcome.breaches is not None:
        return
    if outcome.error is not None and outcome.stage == "data":
        yield _untried(use, outcome.error, "mend the log first")
    elif outcome.error is not None:
        yield Finding(field="ranker.use", value=outcome.error, bound="", remedy="")
    elif outcome.hung and outcome.stage == "call":
        yield Finding(
            field=f"ranker.use {use!r}",
            value=f"no answer to three prompts within {limits.call:g} s",
            bound=f"ranker_pool.timeout_s {limits.call:g}",
            remedy="make it faster, or raise ranker_pool.timeout_s",
        )
    elif outcome.hung:
        yield _untried(use, f"{limits.of(outcome.stage):g} s were not enough to {_WORDS[outcome.stage]}", "")
    else:
        shown = outcome.output[-1] if outcome.output else "it printed nothing"
        yield Finding(
            field=f"ranker.use {use!r}",
            value=f"ended the process that tried it ({shown})",
            bound="a class that returns, or raises an exception",
            remedy="import it in a Python of its own and see",
        )


_WORDS = {"data": "read a sample of the log", "load": "load it", "call": "get an answer to three prompts"}


def _untried(use: str, why: str, remedy: str) -> Finding:
    return Finding(
        field=f"ranker.use {use!r}",
        value=f"was not tried: {why}",
        bound="",
        remedy=remedy or "the run tries it when it comes to that",
        exit_code=0,
    )


def _run(config: RunConfig, limits: Limits, tell: Callable[[str], None]) -> Outcome:
    use, prepared = config.ranker.use, RunPaths.of(config).data
    question = {
        "prepared": str(prepared) if _is_prepared(config, prepared) else None,
        "data": config.data.model_dump(mode="json"),
        "ranker": config.ranker.model_dump(mode="json"),
        "trust": config.trust is not None,
    }
    with tempfile.TemporaryDirectory(prefix="sluice-ranker-") as name:
        directory = Path(name)
        write_atomically(directory / QUESTION, json.dumps(question))
        output = directory / "output.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, name],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        try:
            hung = _wait(process, directory / ANSWER, limits, lambda text: tell(f"ranker {use!r}: {text}"))
        finally:
            _end(process)
        lines = _lines(directory / ANSWER)
        last = lines[-1] if lines else {}
        return Outcome(
            stage=_stage(lines),
            hung=hung,
            breaches=last.get("breaches"),
            in_sample=last.get("in_sample", False),
            error=last.get("error"),
            output=[line for line in output.read_text(errors="replace").splitlines() if line.strip()],
        )


def _is_prepared(config: RunConfig, directory: Path) -> bool:
    """Whether the run directory holds the data that this config prepares."""
    try:
        manifest = read_manifest(directory)
    except DataError:
        return False
    return manifest is not None and manifest.get("settings") == config.data.model_dump(mode="json")


def _wait(
    process: subprocess.Popen[bytes], answer: Path, limits: Limits, tell: Callable[[str], None]
) -> bool:
    """Until the process ends, or a stage takes longer than it may; returns whether that was so."""
    count, since_s, told = 0, time.monotonic(), None
    while process.poll() is None:
        lines = _lines(answer)
        if len(lines) > count:
            count, since_s = len(lines), time.monotonic()
        stage, took_s = _stage(lines), time.monotonic() - since_s
        if took_s > limits.of(stage):
            return True
        if took_s > TELL_S and stage != told:
            tell(f"trying to {_WORDS[stage]}, for {limits.of(stage):g} s at most")
            told = stage
        time.sleep(_POLL_S)
    return False


def _lines(answer: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_whole_lines(answer).lines]


def _stage(lines: list[dict[str, Any]]) -> str:
    stages: list[str] = [line["stage"] for line in lines if "stage" in line]
    return stages[-1] if stages else "data"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started, which are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with process:  # closes the pipe
        process.wait()
