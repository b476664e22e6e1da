"""What happened to every prompt since the last checkpoint, an event for each batch that shared a fate.

    {"event": "leased",     "actor", "leases": [[lease id, attempt, user, position], ...]}
    {"event": "returned",   "actor", "leases": [[lease id, attempt, oldest, newest version], ...], "ranker"}
    {"event": "taken_back", "why", "leases": [lease id, ...]}       to be leased again
    {"event": "dropped",    "as": "stale" or "invalid", "why", "leases"}
    {"event": "trained",    "step", "rank", "version", "leases"}
    {"event": "resumed",    "leases"}                               those that are to be leased again

Each has `time_s` too, seconds since 1970. The learner writes the events with the checkpoint that makes them
last (`journal.jsonl`), so a file holds what its checkpoints say and nothing that was lost.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sluice.actors.queue.leases import Lease, Push


class Journal:
    """The events, in order."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: list[dict[str, Any]] = []

    def leased(self, actor: str, leases: Iterable[Lease]) -> None:
        """An actor got prompts, those that it is to answer."""
        rows = [[e.lease_id, e.attempt, e.user, e.position] for e in leases if not e.companion]
        self._add("leased", rows, actor=actor)

    def returned(self, actor: str, pushes: Sequence[Push]) -> None:
        """Their groups are queued."""
        rows = [[push.lease_id, push.attempt, push.version_min, push.version_max] for push in pushes]
        self._add("returned", rows, actor=actor, ranker=pushes[0].ranker_version if pushes else "")

    def taken_back(self, lease_ids: Sequence[int], why: str) -> None:
        """They will be leased again."""
        self._add("taken_back", list(lease_ids), why=why)

    def dropped(self, lease_ids: Sequence[int], counter: str, why: str) -> None:
        """They leave untrained; `counter` is stale or invalid."""
        self._add("dropped", list(lease_ids), why=why, **{"as": counter})

    def trained(self, lease_ids: Sequence[int], *, step: int, rank: int, version: int) -> None:
        """A learner worker has trained on them."""
        self._add("trained", list(lease_ids), step=step, rank=rank, version=version)

    def resumed(self, lease_ids: Sequence[int]) -> None:
        """The run goes on from a checkpoint; whatever came after it has not been."""
        self._events = [{"event": "resumed", "time_s": self._now_s(), "leases": list(lease_ids)}]

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call; JSON-able."""
        events, self._events = self._events, []
        return events

    def _add(self, event: str, leases: list[Any], **fields: Any) -> None:
        if leases:
            self._events.append({"event": event, "time_s": self._now_s(), **fields, "leases": leases})

    def _now_s(self) -> float:
        return round(self._clock(), 3)
