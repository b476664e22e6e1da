"""The rollout queue as an actor, and the two sides' access to it: `QueueClient` for learner and controller,
`LeaseHolder` for a rollout actor. It holds references, never payloads.

Every wait is a long poll with a bound: the actor's methods come back empty-handed after `wait_s`, and whoever called
decides whether to ask again. Callers stand in line for prompts, for room and for groups; a change serves the heads of
the lines and wakes nobody else, so the cost of a group does not grow with the number of callers.

A queue actor that Ray restarted has lost its state; it says so, gives out no work and takes none until `restore` brings
a checkpoint's snapshot.
"""

import asyncio
import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.calls import Call, RayCall, answer
from actors.flow import FlowControl
from actors.leases import Lease, PulledGroup, Push, PushReply, QueueStatus
from actors.ledger import RolloutLedger
from actors.lines import Line
from actors.settings import QueueSettings
from catalog.dataset import Examples
from catalog.errors import RunError
from catalog.feed import PromptFeed
from catalog.rollout_group import from_stream, to_stream
from cluster.environment import give_way
from cluster.metrics import MetricSet

_TICK_S = 1.0  # how soon expired leases are seen when nothing else happens, and how often metrics are published
_POLL_S = 5.0
# On top of a long poll's own bound: how late its answer may be before the queue counts as unreachable. It covers the
# time in which Ray restarts the queue actor.
_GRACE_S = 60.0

Found = TypeVar("Found")


class QueueActor:
    """The ledger behind async methods. Decorate with `ray.remote` where it is launched."""

    def __init__(
        self,
        prompts: Callable[[], Examples],
        *,
        seed: int,
        settings: QueueSettings,
        publish_every: int = 1,
        lease_deadline_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`prompts` gives the examples to draw from; a factory keeps them out of the arguments that Ray must hold.
        `publish_every` is the learner's steps from one weight version to the next."""
        give_way()
        examples = prompts()
        self._flow = FlowControl(
            max_groups=settings.max_groups, max_staleness=settings.max_staleness, publish_every=publish_every
        )
        self._ledger = RolloutLedger(
            PromptFeed(examples.users, examples.positions, seed=seed),
            max_groups=settings.max_groups,
            max_bytes=int(settings.max_mib * 2**20),
            max_staleness=settings.max_staleness,
            lease_deadline_s=lease_deadline_s,
            flow=self._flow if settings.flow == "measured" else None,
        )
        self._clock = clock
        self._for_prompts, self._for_room, self._for_groups = Line(), Line(), Line()
        self._ticking: asyncio.Task | None = None
        self._restored = not _was_restarted()
        self._failure: str | None = None
        self._metrics = MetricSet()

    async def lease(self, actor: str, incarnation: str, count: int, wait_s: float) -> tuple[Lease, ...]:
        """Prompts to generate for; empty when the queue stayed full for `wait_s`."""

        def attempt() -> tuple[Lease, ...]:
            return self._ledger.lease(actor, incarnation, count, self._clock())

        return await self._until(self._for_prompts, attempt, wait_s, actor) or ()

    async def push(self, actor: str, incarnation: str, pushes: Sequence[Push], wait_s: float) -> PushReply:
        """Queue finished groups. Waits up to `wait_s` for room when none of them fits."""

        def attempt() -> PushReply | None:
            nonlocal reply
            reply = self._ledger.push(actor, incarnation, pushes, self._clock())
            return None if len(reply.full) == len(pushes) else reply

        reply = PushReply(late=tuple(push.lease_id for push in pushes))  # what a queue that was not restored answers
        return await self._until(self._for_room, attempt, wait_s) or reply

    async def reject(self, actor: str, incarnation: str, leases: Sequence[Lease], reason: str) -> int:
        """Give leases up as invalid."""
        return await self._once(lambda: self._ledger.reject(actor, incarnation, leases, reason))

    async def revoke(self, actor: str, reason: str, keep_queued: bool = False) -> int:
        """Take back what a dead or stopped actor holds; a lease that it still waits for is not granted any more."""
        self._for_prompts.dismiss(actor)
        return await self._once(lambda: self._ledger.revoke(actor, reason, keep_queued=keep_queued))

    async def pull(
        self, step: int, rank: int, world: int, count: int, learner_version: int, wait_s: float
    ) -> tuple[PulledGroup, ...] | None:
        """The groups of (step, rank), or None when there were not enough within `wait_s`."""
        if not self._restored:
            raise RunError(
                "the queue actor was restarted and lost its state; restore the queue from the last checkpoint before "
                "pulling from it"
            )

        def attempt() -> tuple[PulledGroup, ...] | None:
            if self._failure is not None:
                raise RunError(self._failure)
            return self._ledger.allot(step, rank, world, count, learner_version)

        return await self._until(self._for_groups, attempt, wait_s)

    async def lost(self, step: int, rank: int, lease_ids: Sequence[int]) -> int:
        """Groups of (step, rank) could not be fetched."""
        return await self._once(lambda: self._ledger.lost(step, rank, lease_ids))

    async def ack(self, step: int, rank: int) -> int:
        """(step, rank) was trained on."""

        def change() -> int:
            count = self._ledger.ack(step, rank)
            if count:
                self._flow.trained(step, count, self._clock())
            return count

        return await self._once(change)

    async def note_error(self, source: str, message: str) -> None:
        """Remember a failure of the rollout side, for whoever waits for groups in vain."""
        self._ledger.last_error = f"{source}: {message}"

    async def fail(self, message: str) -> None:
        """No more groups will come: every pull from now on, and those that wait, end with this."""
        self._failure = message
        self._serve()

    async def snapshot(self) -> dict[str, Any]:
        """The ledger's snapshot."""
        if not self._restored:
            raise RunError("the queue actor was restarted and has nothing to checkpoint until it is restored")
        return self._ledger.snapshot()

    async def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go back to a snapshot, or to the very start."""
        self._ledger.restore(snapshot)
        self._restored = True
        self._serve()

    async def status(self) -> QueueStatus:
        """The ledger's status."""
        self._ledger.expire(self._clock())
        return replace(self._ledger.status(), restored=self._restored)

    async def _until(
        self, line: Line, attempt: Callable[[], Found | None], wait_s: float, who: str = ""
    ) -> Found | None:
        """The first truthy value of `attempt`, which is tried now and whenever its turn in `line` comes; None after
        `wait_s`."""
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        self._ledger.expire(self._clock())
        first = not line or wait_s <= 0  # whoever waits must not overtake those who wait already
        found = attempt() if self._restored and first else None
        self._serve()
        if found or wait_s <= 0:
            return found
        try:
            return await asyncio.wait_for(line.join(attempt, who), wait_s)
        except TimeoutError:
            return None

    async def _once(self, change: Callable[[], int]) -> int:
        self._ledger.expire(self._clock())
        count = change() if self._restored else 0
        self._serve()
        return count

    def _serve(self) -> None:
        """Let the lines try again after a change. Groups and room make each other possible, prompts nothing else."""
        if not self._restored:
            return
        while self._for_groups.serve(everyone=True) or self._for_room.serve():
            continue
        self._for_prompts.serve()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._ledger.expire(self._clock()):
                self._serve()
            self._publish()

    def _publish(self) -> None:
        status = self._ledger.status()
        for name in ("queued", "leased", "in_flight", "limit", "queued_bytes", "staleness_mean"):
            self._metrics.set(f"sluice_queue_{name}", getattr(status, name))
        for name in ("issued", "trained", "stale", "invalid", "late"):
            self._metrics.raise_to(f"sluice_groups_{name}_total", getattr(status, name))


def _was_restarted() -> bool:
    """Whether this process is an actor that Ray started again; False outside an actor."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray calls a deprecated method of its own in here
        return ray.get_runtime_context().was_current_actor_reconstructed


@dataclass(frozen=True)
class QueueClient:
    """The learner's and the controller's side."""

    handle: Any  # of a QueueActor
    wait_s: float  # longest wait for a step's groups
    start_s: float = 0.0  # longest wait for a first rollout actor to ask for prompts: the engines may be loading
    fetch_s: float = 30.0  # longest wait for one object to come from another node

    def pull(self, step: int, rank: int, world: int, count: int, learner_version: int) -> list[pa.RecordBatch]:
        """The `count` groups of this rank; the same ones when asked again. Groups that died with their rollout actor
        are reported and replaced.

        Raises:
            RunError: the groups did not come within `wait_s`; the message has the queue's state and the last error.
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
        return self._call("ack", step, rank)

    def snapshot(self) -> dict[str, Any]:
        """What a checkpoint must hold of the queue; JSON-able."""
        return self._call("snapshot")

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go back to a snapshot, or with None to the very start."""
        self._call("restore", snapshot)

    def status(self) -> QueueStatus:
        """The queue at this moment."""
        return self._call("status")

    def revoke(self, actor: str, reason: str = "", keep_queued: bool = False) -> int:
        """Take back what a rollout actor held; returns how many prompts will be issued again."""
        return self._call("revoke", actor, reason, keep_queued)

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
        return answer(getattr(self.handle, method).remote(*arguments), f"the rollout queue ({method})", _GRACE_S)

    def _allotted(self, step: int, rank: int, world: int, count: int, version: int, deadline_s: float) -> Any:
        started_s, asked = time.monotonic(), False
        while True:
            poll_s = min(_POLL_S, self.wait_s / 4, deadline_s - time.monotonic())
            if poll_s <= 0:
                status = self.status()
                bound_s = self.wait_s if status.actors else max(self.wait_s, self.start_s)
                raise RunError(starved(status, step=step, needed=world * count, wait_s=bound_s))
            reference = self.handle.pull.remote(step, rank, world, count, version, poll_s)
            groups = answer(reference, "the rollout queue (pull)", poll_s + _GRACE_S)
            if groups is not None:
                return groups
            if self.start_s and not asked:
                # From when the first engine asks for prompts there is as long to wait as for any other step.
                now_s, asked = time.monotonic(), self.status().actors > 0
                until_s = now_s + self.wait_s
                deadline_s = max(deadline_s, until_s if asked else min(until_s, started_s + self.start_s))

    def _fetch(self, groups: Sequence[PulledGroup]) -> dict[int, pa.RecordBatch]:
        """The groups that could be fetched within `fetch_s`, by lease id; the caller reports what is missing."""
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


@dataclass(frozen=True, kw_only=True)
class LeaseHolder:
    """A rollout actor's side: calls that do not block, under the actor's name and the life it is in."""

    handle: Any
    actor: str
    incarnation: str
    poll_s: float = _POLL_S

    def lease(self, count: int) -> Call[tuple[Lease, ...]]:
        """Ask for prompts."""
        reference = self.handle.lease.remote(self.actor, self.incarnation, count, self.poll_s)
        return RayCall(reference, "the rollout queue (lease)", self.poll_s + _GRACE_S)

    def put(self, leases: Sequence[Lease], records: pa.RecordBatch, versions: Sequence[tuple[int, int]]) -> list[Push]:
        """Put the groups of some leases into the object store, one row each, with their oldest and newest version.

        They are one object: putting sixteen small ones takes ten times as long. It is freed when the last of its groups
        has been trained on; until then each counts for its share of the bytes. The object is an Arrow IPC stream: as a
        record batch it would be pickled array by array, which takes twice as long.
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
            )
            for row, lease in enumerate(leases)
        ]

    def push(self, pushes: Sequence[Push]) -> Call[PushReply]:
        """Hand groups over."""
        reference = self.handle.push.remote(self.actor, self.incarnation, list(pushes), self.poll_s)
        return RayCall(reference, "the rollout queue (push)", self.poll_s + _GRACE_S)

    def reject(self, leases: Sequence[Lease], reason: str) -> Call[int]:
        """Give leases up."""
        reference = self.handle.reject.remote(self.actor, self.incarnation, list(leases), reason)
        return RayCall(reference, "the rollout queue (reject)", _GRACE_S)

    def release(self, reason: str) -> Call[int]:
        """Hand back what is leased, keeping what is queued."""
        return RayCall(self.handle.revoke.remote(self.actor, reason, True), "the rollout queue (release)", _GRACE_S)


def starved(status: QueueStatus, *, step: int, needed: int, wait_s: float) -> str:
    """Why a learner gave up waiting, and what to do."""
    text = (
        f"waited {wait_s:g} s for {needed} rollout groups of step {step}, but {status.queued} are queued: "
        f"{status.leased} are "
        f"with rollout actors {status.leased_by}, {status.waiting} wait to be issued again, {status.pulled} are "
        "pulled; so "
        f"far {status.issued} issued, {status.trained} trained, {status.stale} stale, {status.invalid} invalid. "
        f"Last error of the rollout side: {status.last_error or 'none'}. "
    )
    if status.queued and status.queued_bytes * (status.queued + 1) > status.max_bytes * status.queued:
        return text + f"The queue is full by bytes ({status.queued_bytes} of {status.max_bytes}): raise queue.max_mib."
    if status.stale > status.trained:
        return text + "More groups went stale than were trained: raise queue.max_staleness or weights.publish_every."
    return text + "If the rollout actors are alive but slow, raise learner.wait_s or rollout.actors."
