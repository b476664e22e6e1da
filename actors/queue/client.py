"""The side of the rollout queue that learner and driver use."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from sluice.actors.calls import get_result
from sluice.actors.queue.lease_holder import LeaseHolder
from sluice.actors.queue.leases import GRACE_S, POLL_S, PulledGroup, QueueStatus
from sluice.catalog.errors import HopelessError
from sluice.catalog.rollout_group import from_stream


@dataclass(frozen=True)
class QueueClient:
    """The learner's and the driver's side."""

    handle: Any  # of a QueueActor
    wait_s: float  # longest wait for a step's groups
    start_s: float = (
        0.0  # longest wait for a first rollout actor to ask for prompts: the engines may be loading
    )
    fetch_s: float = 30.0  # longest wait for one object to come from another node

    def pull(
        self, step: int, rank: int, world: int, count: int, learner_version: int
    ) -> list[pa.RecordBatch]:
        """The `count` groups of this rank; the same ones when asked again. Groups that died with their
        rollout actor are reported and replaced.

        Raises:
            HopelessError: the groups did not come within `wait_s`; the message has the queue's state and the
                last error.
        """
        deadline_s = time.monotonic() + self.wait_s
        fetched: dict[int, pa.RecordBatch] = {}
        while True:
            groups = self._allotted(step, rank, world, count, learner_version, deadline_s)
            unseen = [group for group in groups if group.lease_id not in fetched]
            fetched.update(self._fetch(unseen))
            lost = [group.lease_id for group in unseen if group.lease_id not in fetched]
            if not lost:
                return [fetched[group.lease_id] for group in groups]
            self._call("lost", step, rank, lost)

    def ack(self, step: int, rank: int) -> int:
        """This rank has trained on the step; returns how many groups that newly counts as trained."""
        acknowledged: int = self._call("ack", step, rank)
        return acknowledged

    def snapshot(self) -> dict[str, Any]:
        """What a checkpoint must hold of the queue; JSON-able."""
        snapshot: dict[str, Any] = self._call("snapshot")
        return snapshot

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go back to a snapshot, or with None to the very start."""
        self._call("restore", snapshot)

    def status(self) -> QueueStatus:
        """The queue at this moment."""
        status: QueueStatus = self._call("status")
        return status

    def revoke(self, actor: str, reason: str = "", keep_queued: bool = False) -> int:
        """Take back what a rollout actor held; returns how many prompts will be issued again."""
        revoked: int = self._call("revoke", actor, reason, keep_queued)
        return revoked

    def note_error(self, source: str, message: str) -> None:
        """Leave a failure where a learner that waits in vain will show it."""
        self._call("note_error", source, message)

    def fail(self, message: str) -> None:
        """End every wait for groups with this message."""
        self._call("fail", message)

    def holder(self, actor: str, incarnation: str) -> "LeaseHolder":
        """The rollout actor's side."""
        return LeaseHolder(handle=self.handle, actor=actor, incarnation=incarnation)

    def _call(self, method: str, *arguments: Any) -> Any:
        return get_result(
            getattr(self.handle, method).remote(*arguments), f"the rollout queue ({method})", GRACE_S
        )

    def _allotted(
        self, step: int, rank: int, world: int, count: int, version: int, deadline_s: float
    ) -> tuple[PulledGroup, ...]:
        started_s, asked = time.monotonic(), False
        while True:
            poll_s = min(POLL_S, self.wait_s / 4, deadline_s - time.monotonic())
            if poll_s <= 0:
                status = self.status()
                bound_s = self.wait_s if status.actors else max(self.wait_s, self.start_s)
                raise HopelessError(
                    starvation_message(status, step=step, needed=world * count, wait_s=bound_s)
                )
            reference = self.handle.pull.remote(step, rank, world, count, version, poll_s)
            groups: tuple[PulledGroup, ...] | None = get_result(
                reference, "the rollout queue (pull)", poll_s + GRACE_S
            )
            if groups is not None:
                return groups
            if self.start_s and not asked:
                # From when the first engine asks for prompts there is as long to wait as for any other step.
                now_s, asked = time.monotonic(), self.status().actors > 0
                until_s = now_s + self.wait_s
                deadline_s = max(deadline_s, until_s if asked else min(until_s, started_s + self.start_s))

    def _fetch(self, groups: Sequence[PulledGroup]) -> dict[int, pa.RecordBatch]:
        """The groups that could be fetched within `fetch_s`, by lease id; the caller reports what is
        missing.
        """
        if not groups:
            return {}
        references = list({group.reference for group in groups})
        arrived, _ = ray.wait(references, num_returns=len(references), timeout=self.fetch_s)
        batches = {}
        for reference in arrived:
            with contextlib.suppress(ObjectLostError, GetTimeoutError):
                batches[reference] = from_stream(ray.get(reference, timeout=self.fetch_s))
        return {
            group.lease_id: batches[group.reference].slice(group.row, 1)
            for group in groups
            if group.reference in batches
        }


def starvation_message(status: QueueStatus, *, step: int, needed: int, wait_s: float) -> str:
    """Why a learner gave up waiting, and what to do."""
    text = (
        f"waited {wait_s:g} s for {needed} rollout groups of step {step}, but {status.queued} are queued: "
        f"{status.leased} are with rollout actors {status.leased_by}, {status.waiting} wait to be issued "
        f"again, {status.pulled} are pulled; so far {status.issued} issued, {status.trained} trained, "
        f"{status.stale} stale, {status.invalid} invalid. Last error of the rollout side: "
        f"{status.last_error or 'none'}. "
    )
    if status.queued and status.queued_bytes * (status.queued + 1) > status.max_bytes * status.queued:
        return (
            text + f"The queue is full by bytes ({status.queued_bytes} of {status.max_bytes}): raise "
            "queue.max_mib."
        )
    if status.stale > status.trained:
        return (
            text
            + "More groups went stale than were trained: raise queue.max_staleness or weights.publish_every."
        )
    return (
        text + "If the rollout actors are alive but slow, raise learner.rollout_timeout_s or rollout.actors."
    )
