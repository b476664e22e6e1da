"""From when groups arrived to groups per second, for `sluice.services.bench.system.rollout`. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sluice.catalog.errors import RunError


@dataclass
class Arrivals:
    """How many groups there were, and since when: one entry whenever some arrived."""

    groups: list[int] = field(default_factory=list)  # so far
    at_s: list[float] = field(default_factory=list)

    def note(self, groups: int, now_s: float) -> None:
        """So many more groups are there."""
        if groups:
            self.groups.append((self.groups[-1] if self.groups else 0) + groups)
            self.at_s.append(now_s)

    def seconds_per_group(self, first: int, last: int) -> float:
        """Between the arrival of group number `first` and that of number `last`.

        Groups arrive several at a time, so both ends are the moments after such an arrival, and the groups
        between the two are counted.

        Raises:
            RunError: they did not all arrive, or all at once.
        """
        begin, end = (
            next((row for row, groups in enumerate(self.groups) if groups >= number), None)
            for number in (first, last)
        )
        if begin is None or end is None or begin == end:
            raise RunError(
                f"{self.groups[-1:] or [0]} groups arrived, too few to time those from {first} to {last}"
            )
        return (self.at_s[end] - self.at_s[begin]) / (self.groups[end] - self.groups[begin])


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds per group of one round."""

    service_s: float
    engine_s: float  # of the service's, in engine steps
    bare_s: float  # with bare_add_s
    bare_add_s: float  # of that, handing the prompts to vLLM before the first step


def summarise_rounds(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians over the rounds; each round's ratio is of sides that were timed one right after the other."""
    ratios = [timed.bare_s / timed.service_s for timed in rounds]

    def middle(name: str) -> float:
        return float(statistics.median(getattr(timed, name) for timed in rounds))

    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "groups_per_s": {"service": 1 / middle("service_s"), "bare": 1 / middle("bare_s")},
        "ms_per_group": {
            "service": 1000 * middle("service_s"),
            "service_engine": 1000 * middle("engine_s"),
            "bare": 1000 * middle("bare_s"),
            "bare_add": 1000 * middle("bare_add_s"),
        },
    }


def share_of_same(ours: dict[int, Any], theirs: dict[int, Any]) -> float:
    """The share of candidates that are the same on both sides, over the prompts that both had.

    Raises:
        RunError: they had no prompt in common.
    """
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise RunError("the two sides had no prompt in common")
    same = [(ours[prompt] == theirs[prompt]).all(axis=1).mean() for prompt in common]
    return float(sum(same) / len(same))
