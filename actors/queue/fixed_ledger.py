"""The rollout ledger of a deterministic run (`sluice.actors.queue.fixed_order`).

It differs from the ledger that it is made from in what it grants and what it allots: whole batches in the
feed's order, each for the weights of one version, and steps in that order too. What is lost is generated
again, with the prompts that it was generated beside. No group is dropped: one that has been given up
`ATTEMPTS` times ends the run.

Bounds: `leased + queued <= max_groups`, and bytes, hold when prompts are drawn, but for those of the next
step, which nothing may keep waiting. A group that was granted is never turned away.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sluice.actors.queue.fixed_order import FixedOrder
from sluice.actors.queue.leases import Lease, PulledGroup, Push
from sluice.actors.queue.ledger import LOST, RolloutLedger
from sluice.actors.queue.ledger_entries import LedgerEntry, LedgerStep, PromptState
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import HopelessError, RunError

ATTEMPTS = 5  # at one prompt that end with its being given up, after which the run ends


class FixedLedger(RolloutLedger):
    """See the module."""

    def __init__(
        self,
        feed: PromptFeed,
        *,
        order: FixedOrder,
        max_groups: int,
        max_bytes: int,
        lease_deadline_s: float,
        expected_bytes: int = 4096,
    ) -> None:
        super().__init__(
            feed,
            max_groups=max_groups,
            max_bytes=max_bytes,
            max_staleness=order.lag,
            lease_deadline_s=lease_deadline_s,
            expected_bytes=expected_bytes,
        )
        self._order = order
        self._failure: str | None = None

    def lease(self, actor: str, incarnation: str, count: int, now_s: float) -> tuple[Lease, ...]:
        """The first batch that has a prompt to be generated, whole; none while there is none.

        Prompts of it that need not be generated again come as `companion`: the others' distractors, and
        the last bits of their scores, depend on them.

        Raises:
            RunError: `count` is not the order's batch.
        """
        if count != self._order.batch:
            raise RunError(
                f"{actor} asked for {count} prompts, and this run's batches have {self._order.batch}"
            )
        if not self._admit(actor, incarnation):
            return ()
        first = self._next_lease_id()
        if first is None:
            return ()
        batch = tuple(
            self._lease_one(lease_id, actor, incarnation, now_s) for lease_id in self._order.batch_of(first)
        )
        self.journal.leased(actor, batch)
        return batch

    def allot(
        self, step: int, rank: int, world: int, count: int, learner_version: int
    ) -> tuple[PulledGroup, ...] | None:
        """The step's own groups.

        Raises:
            RunError: what `RolloutLedger.allot` raises.
            HopelessError: a prompt has been given up too often.
        """
        if self._failure is not None:
            raise HopelessError(self._failure)
        return super().allot(step, rank, world, count, learner_version)

    def lost(self, step: int, rank: int, lease_ids: Sequence[int]) -> int:
        """Groups of (step, rank) that could not be fetched: they are generated again, and keep their
        places.
        """
        slots = self._steps[step].slots[rank] if step in self._steps else []
        gone = [self._prompts[lease_id] for lease_id in lease_ids if lease_id in slots]
        self._take_back(gone, LOST)
        return len(gone)

    def snapshot(self) -> dict[str, Any]:
        """The ledger's, with the order."""
        return {**super().snapshot(), "order": asdict(self._order)}

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go back to `snapshot` (None: the very start).

        Raises:
            RunError: what `RolloutLedger.restore` raises, or the order is another one.
        """
        if snapshot is not None and snapshot.get("order") != asdict(self._order):
            raise RunError(
                f"the checkpoint's prompts are in the order {snapshot.get('order')}, and this run's is "
                f"{asdict(self._order)}: a deterministic run is resumed with the same "
                "learner.prompts_per_step, rollout.prompts_per_lease, weights.publish_every and "
                "queue.max_staleness"
            )
        keeps_all = snapshot is None and self._unseen
        super().restore(snapshot)
        if not keeps_all:
            # A lease id is a place in the feed. What an actor still pushes for an older life of a lease is
            # the same group, to the bit.
            self._next_id = 0 if snapshot is None else snapshot["next_id"]

    def _give_up(self, entries: Sequence[LedgerEntry]) -> None:
        """What an actor could not serve is leased again."""
        self._take_back(entries, self.last_error)
        for entry in entries:
            entry.rejections += 1
            if entry.rejections == ATTEMPTS:
                self._failure = self._failure or (
                    f"the prompt of user {entry.user} at position {entry.position} could not be served in "
                    f"{ATTEMPTS} attempts, and a deterministic run leaves none out; the last error: "
                    f"{self.last_error}"
                )

    def _next_lease_id(self) -> int | None:
        waiting = self._prompts.of(PromptState.WAITING)
        if waiting:
            return min(waiting)
        size, under_way = self._order.batch, self._prompts.count(PromptState.LEASED, PromptState.QUEUED)
        fits = under_way + size <= self._max_groups and self._grant_by_bytes() >= size
        has_weights = self._order.version_of(self._next_id) <= self._order.published(self._count["trained"])
        next_step = max(self._highest_step + 1, self._count["trained"] // self._order.step_groups)
        is_next = self._next_id in self._order.step(next_step)  # which nothing else may keep waiting
        return self._next_id if has_weights and (fits or is_next) else None

    def _lease_one(self, lease_id: int, actor: str, incarnation: str, now_s: float) -> Lease:
        version = self._order.version_of(lease_id)
        entry = self._draw() if lease_id == self._next_id else self._prompts.get(lease_id)
        if entry is None or entry.state is not PromptState.WAITING:
            user, position = self._feed.example(lease_id)
            return Lease(
                lease_id=lease_id, attempt=0, user=user, position=position, version=version, companion=True
            )
        return self._issue(entry, actor, incarnation, now_s, version)

    def _has_room_for(self, push: Push) -> bool:
        return True

    def _open_step(self, step: int, world: int, count: int, learner_version: int) -> bool:
        lease_ids = self._order.step(step)
        if world * count != len(lease_ids):
            raise RunError(
                f"step {step} was pulled as {world} x {count} groups, and this run's steps have "
                f"{len(lease_ids)}"
            )
        slots = [list(lease_ids[rank * count : (rank + 1) * count]) for rank in range(world)]
        opened = LedgerStep(
            world=world, count=count, learner_version=learner_version, slots=slots, acked=set()
        )
        if not all(self._state_of(lease_id) is PromptState.QUEUED for lease_id in lease_ids):
            return False
        self._steps[step] = opened
        self._highest_step = max(self._highest_step, step)
        return True

    def _fill(self, state: LedgerStep, rank: int) -> bool:
        for lease_id in state.slots[rank]:
            if self._state_of(lease_id) is PromptState.QUEUED:
                self._prompts.move(self._prompts[lease_id], PromptState.PULLED)
        return all(self._state_of(lease_id) is PromptState.PULLED for lease_id in state.slots[rank])

    def _drop_stale(self, learner_version: int) -> None:
        """Nothing is older than the order says."""

    def _state_of(self, lease_id: int) -> PromptState | None:
        entry = self._prompts.get(lease_id)
        return None if entry is None else entry.state
