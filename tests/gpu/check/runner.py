"""Runs the steps, each a process of its own with a bound: one that crashes or hangs takes no other down.

Steps that are not timed run beside each other, then the timed ones one by one. Every result is
handed on as it comes.
"""

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.gpu.check.step import Budget, Result, Step, StepError

GRACE_S = 5.0  # for a step that is told to end, before it is killed
MARK = "SLUICE_GPU_CHECK_STEP"  # in the environment of all that a step starts, so that none is left over


@dataclass(kw_only=True)
class Runner:
    """Runs steps within a budget and hands every result to `record`."""

    budget: Budget
    output: Path  # a folder per step: what it printed and wrote
    environment: Mapping[str, str]
    record: Callable[[Result], None]
    beside: int = 1  # steps that may run at once, but for the timed ones
    on_cpu: bool = False
    _running: dict[str, subprocess.Popen] = field(default_factory=dict, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, steps: Sequence[Step]) -> None:
        """Run them all; on an interrupt end those that are under way, and raise it again."""
        try:
            with ThreadPoolExecutor(max_workers=self.beside) as pool:
                try:
                    for done in [pool.submit(self._run, step) for step in steps if not step.alone]:
                        done.result()
                except BaseException:
                    self.stop()  # or the pool would wait for its steps
                    raise
            for step in steps:
                if step.alone:
                    self._run(step)
        finally:
            self.stop()

    def stop(self) -> None:
        """End what is under way, and start nothing more."""
        self._stopped.set()
        for mark, process in list(self._running.items()):
            _end(process, mark)

    def _run(self, step: Step) -> None:
        if self._stopped.is_set():
            return
        about = {"name": step.name, "shows": step.shows}
        if self.on_cpu and not step.on_cpu:
            self.record(Result(**about, note="needs a GPU"))
            return
        bound_s = self.budget.bound_s(step)
        if bound_s is None:
            self.record(Result(**about, note=f"out of time: the {self.budget.total_s:.0f} s are used up"))
            return
        folder = self.output / step.name
        folder.mkdir(parents=True, exist_ok=True)
        started_s = time.monotonic()
        status, words = self._execute(step, folder, bound_s)
        about["seconds"] = time.monotonic() - started_s
        if status is None and bound_s < step.limit_s:
            note = f"cut off after {bound_s:.0f} s: the {self.budget.total_s:.0f} s are used up"
            self.record(Result(**about, outcome="out of time", note=note))
        elif status is None:
            note = f"no end within {step.limit_s:.0f} s; {words}"
            self.record(Result(**about, outcome="failed", note=note))
        elif status:
            self.record(Result(**about, outcome="failed", note=f"exit status {status}; {words}"))
        else:
            self.record(judged(step, folder, about))

    def _execute(self, step: Step, folder: Path, bound_s: float) -> tuple[int | None, str]:
        """The exit status, None when the bound was reached; and what the step said before it was ended."""
        mark = uuid.uuid4().hex
        command = [part.replace("{out}", str(folder)) for part in step.command]
        with open(folder / "output.txt", "w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, MARK: mark},
                start_new_session=True,
            )
        self._running[mark] = process
        if self._stopped.is_set():  # in between, so that `stop` has not seen it
            _end(process, mark)
        try:
            status = process.wait(timeout=bound_s)
            return status, said(folder)
        except subprocess.TimeoutExpired:
            return None, said(folder)
        finally:
            _end(process, mark)
            self._running.pop(mark, None)


def judged(step: Step, folder: Path, about: Mapping[str, object]) -> Result:
    """Of a step whose command ended well: it passed when its figures are there and show no failure."""
    try:
        figures = step.figures(folder)
    except StepError as error:
        return Result(**about, outcome="failed", note=str(error))
    except (OSError, KeyError, IndexError, TypeError, ValueError, SyntaxError) as error:
        note = f"its figures cannot be read: {type(error).__name__} {error}"
        return Result(**about, outcome="failed", note=note)
    return Result(**about, outcome="passed", figures=figures, note="")


def said(folder: Path) -> str:
    """The last line that a step printed, which mostly says why it failed."""
    lines = (folder / "output.txt").read_text(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith(("FAILED", "ERROR", "sluice: "))]
    return " / ".join((errors or lines)[-2:])[:400] or "it printed nothing"


def _end(process: subprocess.Popen, mark: str) -> None:
    """End the process with all that it started, also in sessions of their own."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
    for other in psutil.process_iter():
        try:
            if other.environ().get(MARK) == mark:
                other.kill()
        except psutil.Error:
            continue  # it has ended, or is another user's
    if process.poll() is None:
        process.kill()
        process.wait(timeout=GRACE_S)
