"""The rollout queue as an actor, and the two sides' access to it: `QueueClient` for learner and driver,
`LeaseHolder` for a rollout actor. It holds references, never payloads.

Every wait is a long poll with a bound: the actor's methods come back empty-handed after `wait_s`, and whoever
called decides whether to ask again. Callers stand in line for prompts, for room and for groups; a change
serves the heads of the lines and wakes nobody else, so the cost of a group does not grow with the number of
callers.

A queue actor that Ray restarted has lost its state; it says so, gives out no work and takes none until
`restore` brings a checkpoint's snapshot.
"""

import asyncio
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray

from sluice.actors.queue.fixed_ledger import FixedLedger
from sluice.actors.queue.fixed_order import FixedOrder
from sluice.actors.queue.flow import FlowControl
from sluice.actors.queue.leases import Lease, PulledGroup, Push, PushReply, QueueStatus
from sluice.actors.queue.ledger import RolloutLedger
from sluice.actors.queue.wait_list import WaitList
from sluice.actors.settings import QueueSettings
from sluice.catalog.data.dataset import Examples
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import HopelessError, RunError
from sluice.cluster.environment import lower_thread_priority
from sluice.cluster.metrics import MetricSet

_TICK_S = (
    1.0  # how soon expired leases are seen when nothing else happens, and how often metrics are published
)

Answer = TypeVar("Answer")


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
        order: FixedOrder | None = None,
    ) -> None:
        """`prompts` gives the examples to draw from; a factory keeps them out of the arguments that Ray must
        hold. `publish_every` is the learner's steps from one weight version to the next. `order` is that of
        a deterministic run.
        """
        lower_thread_priority()
        examples = prompts()
        self._flow = FlowControl(
            max_groups=settings.max_groups, max_staleness=settings.max_staleness, publish_every=publish_every
        )
        feed = PromptFeed(examples.users, examples.positions, seed=seed)
        bounds: dict[str, Any] = {
            "max_groups": settings.max_groups,
            "max_bytes": int(settings.max_mib * 2**20),
            "lease_deadline_s": lease_deadline_s,
        }
        self._ledger = (
            RolloutLedger(
                feed,
                **bounds,
                max_staleness=settings.max_staleness,
                max_failures=settings.max_prompt_failures,
                flow=self._flow if settings.flow == "measured" else None,
            )
            if order is None
            else FixedLedger(feed, order=order, **bounds)
        )
        self._clock = clock
        self._for_prompts: WaitList[tuple[Lease, ...]] = WaitList()
        self._for_room: WaitList[PushReply] = WaitList()
        self._for_groups: WaitList[tuple[PulledGroup, ...]] = WaitList()
        self._ticking: asyncio.Task[None] | None = None
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
        # What a queue that was not restored answers.
        reply = PushReply(late=tuple(push.lease_id for push in pushes))

        def attempt() -> PushReply | None:
            nonlocal reply
            reply = self._ledger.push(actor, incarnation, pushes, self._clock())
            return None if len(reply.full) == len(pushes) else reply

        return await self._until(self._for_room, attempt, wait_s) or reply

    async def reject(
        self, actor: str, incarnation: str, leases: Sequence[Lease], reason: str, again: bool = False
    ) -> int:
        """Give leases up as invalid, or `again` back to be issued once more."""
        return await self._once(lambda: self._ledger.reject(actor, incarnation, leases, reason, again=again))

    async def revoke(self, actor: str, reason: str, keep_queued: bool = False) -> int:
        """Take back what a dead or stopped actor holds; a lease that it still waits for is not granted any
        more.
        """
        self._for_prompts.release(actor)
        return await self._once(lambda: self._ledger.revoke(actor, reason, keep_queued=keep_queued))

    async def pull(
        self, step: int, rank: int, world: int, count: int, learner_version: int, wait_s: float
    ) -> tuple[PulledGroup, ...] | None:
        """The groups of (step, rank), or None when there were not enough within `wait_s`."""
        if not self._restored:
            raise RunError(
                "the queue actor was restarted and lost its state; restore the queue from the last "
                "checkpoint before pulling from it"
            )

        def attempt() -> tuple[PulledGroup, ...] | None:
            if self._failure is not None:
                raise HopelessError(self._failure)
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
        self, line: WaitList[Answer], attempt: Callable[[], Answer | None], wait_s: float, who: str = ""
    ) -> Answer | None:
        """The first truthy value of `attempt`, which is tried now and whenever its turn in `line` comes; None
        after `wait_s`.
        """
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        self._ledger.expire(self._clock())
        first = not line or wait_s <= 0  # whoever waits must not overtake those who wait already
        answer = attempt() if self._restored and first else None
        self._serve()
        if answer or wait_s <= 0:
            return answer
        try:
            return await asyncio.wait_for(line.add(attempt, who), wait_s)
        except TimeoutError:
            return None

    async def _once(self, change: Callable[[], int]) -> int:
        self._ledger.expire(self._clock())
        count = change() if self._restored else 0
        self._serve()
        return count

    def _serve(self) -> None:
        """Let the lines try again after a change. Groups and room make each other possible, prompts nothing
        else.
        """
        if not self._restored:
            return
        while self._for_groups.wake(everyone=True) or self._for_room.wake():
            continue
        self._for_prompts.wake()

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
        restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
    return restarted
