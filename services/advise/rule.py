"""A rule of a verdict: when it holds, what it says, and what to change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Figures = TypeVar("Figures")


@dataclass(frozen=True, kw_only=True)
class Rule(Generic[Figures]):
    """One row of a table of rules."""

    name: str
    holds: Callable[[Figures], bool]
    says: Callable[[Figures], str]  # a clause with the figures and their bounds, without a full stop
    change: str  # the setting to change, and which way


def holding(rules: Sequence[Rule[Figures]], figures: Figures) -> list[Rule[Figures]]:
    """The rules that hold, in the order of the table: the most important first."""
    return [rule for rule in rules if rule.holds(figures)]
