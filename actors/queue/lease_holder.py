"""A rollout actor's side of the rollout queue."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from sluice.actors.calls import Call, RayCall
from sluice.actors.queue.leases import GRACE_S, POLL_S, Lease, Push, PushReply
from sluice.catalog.rollout_group import to_stream


@dataclass(frozen=True, kw_only=True)
class LeaseHolder:
    """A rollout actor's side: calls that do not block, under the actor's name and the life it is in."""

    handle: Any
    actor: str
    incarnation: str
    poll_s: float = POLL_S

    def lease(self, count: int) -> Call[tuple[Lease, ...]]:
        """Ask for prompts."""
        reference = self.handle.lease.remote(self.actor, self.incarnation, count, self.poll_s)
        return RayCall(reference, "the rollout queue (lease)", self.poll_s + GRACE_S)

    def put(
        self,
        leases: Sequence[Lease],
        records: pa.RecordBatch,
        versions: Sequence[tuple[int, int]],
        ranker_version: str = "",
    ) -> list[Push]:
        """Put the groups of some leases into the object store, one row each, with their oldest and newest
        version, and that of the ranker that scored them.

        They are one object: putting sixteen small ones takes ten times as long. It is freed when the last of
        its groups has been trained on; until then each counts for its share of the bytes. The object is an
        Arrow IPC stream: as a record batch it would be pickled array by array, which takes twice as long.
        """
        stream = to_stream(records)
        reference = ray.put(stream)
        nbytes = math.ceil(len(stream) / max(1, len(leases)))
        return [
            Push(
                lease_id=lease.lease_id,
                attempt=lease.attempt,
                reference=reference,
                row=row,
                nbytes=nbytes,
                version_min=versions[row][0],
                version_max=versions[row][1],
                ranker_version=ranker_version,
            )
            for row, lease in enumerate(leases)
        ]

    def push(self, pushes: Sequence[Push]) -> Call[PushReply]:
        """Hand groups over."""
        reference = self.handle.push.remote(self.actor, self.incarnation, list(pushes), self.poll_s)
        return RayCall(reference, "the rollout queue (push)", self.poll_s + GRACE_S)

    def reject(self, leases: Sequence[Lease], reason: str, *, again: bool = False) -> Call[int]:
        """Give leases up, or `again` back to be issued once more."""
        reference = self.handle.reject.remote(self.actor, self.incarnation, list(leases), reason, again)
        return RayCall(reference, "the rollout queue (reject)", GRACE_S)

    def release(self, reason: str) -> Call[int]:
        """Hand back what is leased, keeping what is queued."""
        return RayCall(
            self.handle.revoke.remote(self.actor, reason, True), "the rollout queue (release)", GRACE_S
        )
