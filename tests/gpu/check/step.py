"""What a step of the check is, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "failed", "out of time", "not run"]


class StepError(Exception):
    """A step whose command ended well and did not show what it is for."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command line, and how its figures are read from what it wrote."""

    name: str
    shows: str
    command: tuple[str, ...]
    figures: Callable[[Path], dict[str, Any]]  # of its folder; raises StepError when they show a failure
    limit_s: float
    least_s: float = 20.0  # with less than this left of the budget it is not worth starting
    alone: bool = False  # it is timed, so nothing runs beside it
    on_cpu: bool = True  # it shows something without a GPU


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table."""

    name: str
    shows: str
    outcome: Outcome = "not run"
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = "the check ended before it"  # why, when it did not pass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The time that all steps have together. The clock is passed in."""

    total_s: float
    clock: Callable[[], float]
    started_s: float

    def left_s(self) -> float:
        """Seconds until it is used up."""
        return self.total_s - (self.clock() - self.started_s)

    def bound_s(self, step: Step) -> float | None:
        """How long the step may take if it starts now; None when too little is left to start it."""
        left_s = self.left_s()
        return None if left_s < step.least_s else min(step.limit_s, left_s)
