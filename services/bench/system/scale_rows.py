"""The rows of `sluice bench scale`: what is measured, and how a row's figures come from what was seen."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sluice.actors.queue.leases import QueueStatus
from sluice.actors.settings import QueueSettings, RolloutSettings, WeightSettings
from sluice.catalog.errors import RunError

RATE = 0.5  # groups per second of one engine
STEP_S = 2.0  # of all engines' work: what the learner takes as one step
MAX_STALENESS = 16


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A row to measure."""

    actors: int
    train_s: float  # of a step
    steps: int  # measured

    @property
    def groups_per_step(self) -> int:
        """What all engines make in `STEP_S`."""
        return round(self.actors * RATE * STEP_S)

    @property
    def supply(self) -> float:
        """Groups per second that the engines can make."""
        return self.actors * RATE

    @property
    def demand(self) -> float:
        """Groups per second that the learner could train on."""
        return self.groups_per_step / self.train_s

    def queue(self, rollout: RolloutSettings) -> QueueSettings:
        """Room for all leases that are out and for two steps."""
        leases = rollout.leases_ahead + 2
        groups = self.actors * leases * rollout.prompts_per_lease + 2 * self.groups_per_step
        return QueueSettings(max_groups=groups, max_mib=1024.0, max_staleness=MAX_STALENESS)


def summarise_rows(
    shape: Shape,
    rollout: RolloutSettings,
    measured: Mapping[str, Any],
    controller: float,
    status: QueueStatus,
    loads: Sequence[tuple[Mapping[int, float], Mapping[int, float]]],
    idle: float,
) -> dict[str, Any]:
    """The figures of a row. `controller`: its CPU seconds per second; `idle`: CPU ms per second of an idle
    actor.
    """
    began, ended, published = measured["began"], measured["ended"], measured["published"]
    took_s = ended["at_s"] - began["at_s"]
    groups = ended["status"].trained - began["status"].trained
    versions = shape.steps // WeightSettings().publish_every
    cpu_ms = {name: 1000 * (ended["cpu_s"][name] - began["cpu_s"][name]) for name in ended["cpu_s"]}
    per_group = {name: value / groups for name, value in cpu_ms.items() if name != "board"}
    per_group["controller"] = 1000 * controller * took_s / groups
    arrived, active = (all_have(published, [load[part] for load in loads]) for part in (0, 1))
    busy, total = (after - before for before, after in zip(began["machine"], ended["machine"], strict=True))
    row = {
        "actors": shape.actors,
        "limit": "engines" if shape.supply <= shape.demand else "learner",
        "supply_groups_per_s": shape.supply,
        "learner_groups_per_s": shape.demand,
        "groups_per_s": groups / took_s,
        "efficiency": groups / took_s / min(shape.supply, shape.demand),
        "engines_busy": (ended["made"] - began["made"]) / took_s / shape.supply,
        "queue_limit_groups_per_s": 1000 * groups / (cpu_ms["queue"] - idle * took_s),
        "queue_cpu_net_ms_per_group": (cpu_ms["queue"] - idle * took_s) / groups,
        **{f"{name}_cpu_ms_per_group": value for name, value in per_group.items()},
        "board_cpu_ms_per_version": cpu_ms["board"] / versions,
        "board_cpu_net_ms_per_version": (cpu_ms["board"] - idle * took_s) / versions,
        "publish_to_arrived_s": statistics.median(arrived),
        "publish_to_arrived_max_s": max(arrived),
        "publish_to_active_s": statistics.median(active),
        "publish_to_active_max_s": max(active),
        "pull_s": measured["pull_s"],
        "staleness_mean": status.staleness_mean,
        "staleness_max": status.staleness_max,
        "machine_busy": busy / total if total else None,
        "groups_per_step": shape.groups_per_step,
        "max_groups": shape.queue(rollout).max_groups,
        "late": status.late,
        "reissued": status.reissued,
        "accounting": status.accounting,
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def median_row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of a row's measured numbers; what is the same in every run, and accounts, as in the last
    one.
    """
    row = dict(runs[-1])
    for name, value in row.items():
        if isinstance(value, float):
            row[name] = statistics.median(run[name] for run in runs)
    return row | {"runs": len(runs)}


def all_have(published: Mapping[int, float], had: Sequence[Mapping[int, float]]) -> list[float]:
    """Seconds from each version's publication until everybody in `had` (version -> when) had it or a later
    one.

    Versions that somebody never got, because the end came first, are left out.

    Raises:
        RunError: no version reached everybody.
    """
    seconds = []
    for version, at_s in published.items():
        first_s = [
            min((when_s for have, when_s in arrivals.items() if have >= version), default=math.inf)
            for arrivals in had
        ]
        if first_s and max(first_s) < math.inf:
            seconds.append(max(first_s) - at_s)
    if not seconds:
        raise RunError(
            f"none of the weight versions {sorted(published)} reached all {len(had)} rollout actors"
        )
    return seconds


def check_accounting(status: QueueStatus, trained: int) -> None:
    """Raises RunError unless every prompt is accounted for and `trained` groups were acknowledged."""
    count = status.accounting
    if count["issued"] != count["trained"] + count["stale"] + count["invalid"] + count["in_flight"]:
        raise RunError(f"the queue's accounting does not add up: {count}")
    if count["trained"] != trained:
        raise RunError(
            f"the learner acknowledged {trained} groups, the queue counts {count['trained']} as trained"
        )
