"""The rollout ledger: who has which prompt, what is queued, what may be trained on. A plain state machine.

    feed -> leased -> queued -> pulled -> trained
    leased, queued, pulled -> waiting -> leased    (expired, revoked, lost: issued again under the same id)
    leased -> invalid;  queued -> stale

Each prompt drawn from the feed is in exactly one state until it leaves as trained, stale or invalid, so at
any moment `issued = trained + stale + invalid + leased + queued + pulled + waiting`. The clock is passed in;
nothing here waits.

No call looks at more prompts than it hands out, so the cost of a group does not grow with what is in flight;
only `revoke`, `snapshot` and `status` look at everything.

Bounds: `leased + queued <= max_groups` and the queued bytes never exceed `max_bytes`. Both are kept when
leasing (with the mean size of the groups seen so far standing for those still to come) and the bytes once
more when pushing.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any

from sluice.actors.queue.flow import FlowControl, grant_batch
from sluice.actors.queue.journal import Journal
from sluice.actors.queue.leases import Lease, PulledGroup, Push, PushReply, QueueStatus
from sluice.actors.queue.ledger_entries import ActorProcesses, GroupSize, LedgerEntry, LedgerStep, PromptState
from sluice.actors.queue.prompt_table import PromptTable
from sluice.actors.queue.suspects import Suspects
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import RunError

SNAPSHOT_VERSION = 1
LOST = "its object was lost before the learner had it"
_COUNTERS = ("issued", "trained", "stale", "invalid", "reissued", "late", "staleness_sum", "staleness_max")


class RolloutLedger:
    """The state behind the queue actor."""

    def __init__(
        self,
        feed: PromptFeed,
        *,
        max_groups: int,
        max_bytes: int,
        max_staleness: int,
        lease_deadline_s: float,
        expected_bytes: int = 4096,
        flow: FlowControl | None = None,
        max_failures: int = 3,
    ) -> None:
        """`expected_bytes` is the size assumed of a group until the first one is pushed; `flow` may lower
        `max_groups`, and is told when groups come.
        """
        self._feed, self._flow, self._suspects = feed, flow, Suspects(max_failures)
        self._max_groups, self._max_bytes, self._max_staleness = max_groups, max_bytes, max_staleness
        self._lease_deadline_s = lease_deadline_s
        self._size = GroupSize(expected_bytes)
        self._limit, self._next_id = max_groups, 0
        self.last_error = ""
        self.journal = Journal()
        self._processes = ActorProcesses()
        self._reset()

    def _reset(self) -> None:
        self._prompts = PromptTable()
        self._suspects.clear()
        self._steps: dict[int, LedgerStep] = {}
        self._highest_step = -1
        self._refused = 0  # groups that a learner was last refused
        self._processes.forget_actors()
        self._count: Counter[str] = Counter(dict.fromkeys(_COUNTERS, 0))

    # The rollout side

    def lease(self, actor: str, incarnation: str, count: int, now_s: float) -> tuple[Lease, ...]:
        """Up to `count` prompts, those waiting to be issued again first; none while the queue is full."""
        if not self._admit(actor, incarnation):
            return ()
        granted: list[Lease] = []
        leased = self._prompts.of(PromptState.LEASED).values()
        for _ in range(0 if self._suspects.occupy(actor, leased) else self._grant(count)):
            entry = next(iter(self._prompts.of(PromptState.WAITING).values()), None) or self._draw()
            fate = self._suspects.fate(entry, actor, leased)
            if fate == "give up":
                self.last_error = self._suspects.give_up(entry)
                self._drop([entry], "invalid", self.last_error)
            elif fate != "later":
                granted.append(self._issue(entry, actor, incarnation, now_s))
            if fate in ("later", "lend alone"):
                break
        self.journal.leased(actor, granted)
        return tuple(granted)

    def push(self, actor: str, incarnation: str, pushes: Sequence[Push], now_s: float) -> PushReply:
        """Queue finished groups; what does not fit by bytes stays leased and is to be pushed again."""
        fate: dict[str, list[int]] = {"accepted": [], "late": [], "full": [], "oversized": []}
        queued = []
        for push in pushes:
            entry = self._held(actor, incarnation, push.lease_id, push.attempt)
            if entry is None:
                self._count["late"] += 1
                fate["late"].append(push.lease_id)
            elif push.nbytes > self._max_bytes:
                self.last_error = (
                    f"{actor}: a group of {push.nbytes} bytes does not fit a queue of {self._max_bytes} "
                    f"bytes: raise queue.max_mib"
                )
                self._drop([entry], "invalid", self.last_error)
                fate["oversized"].append(push.lease_id)
            elif not self._has_room_for(push):
                entry.deadline_s = now_s + self._lease_deadline_s
                self._prompts.of(PromptState.LEASED).move_to_end(entry.lease_id)
                fate["full"].append(push.lease_id)
            else:
                self._size.add(push.nbytes)
                entry.push = push
                self._prompts.move(entry, PromptState.QUEUED)
                if self._flow is not None:
                    self._flow.queued(now_s - entry.leased_s)
                fate["accepted"].append(push.lease_id)
                queued.append(push)
        self.journal.returned(actor, queued)
        return PushReply(**{name: tuple(ids) for name, ids in fate.items()})

    def reject(
        self, actor: str, incarnation: str, leases: Sequence[Lease], reason: str, *, again: bool = False
    ) -> int:
        """Give leases up as invalid, or `again` back to be issued once more; returns how many still were this
        actor's.
        """
        held = [self._held(actor, incarnation, lease.lease_id, lease.attempt) for lease in leases]
        own = [entry for entry in held if entry is not None]
        self.last_error = f"{actor}: {reason}"
        if again:
            self._take_back(own, self.last_error)
        else:
            self._give_up(own)
        return len(own)

    def revoke(self, actor: str, reason: str, *, keep_queued: bool = False) -> int:
        """Take back all that an actor holds: its leases, and its queued groups, whose objects died with it.

        `keep_queued` leaves the queued groups, for an actor that stopped but whose process lives. Groups
        already pulled stay with the learner, which reports those that it cannot fetch as lost.
        """
        states = (PromptState.LEASED,) if keep_queued else (PromptState.LEASED, PromptState.QUEUED)
        taken = [e for state in states for e in self._prompts.of(state).values() if e.actor == actor]
        self._take_back(taken, f"{actor}: {reason or 'restarted'}")
        if reason:
            self.last_error = f"{actor}: {reason}"
        return len(taken)

    def expire(self, now_s: float) -> int:
        """Take back leases past their deadline, so that a wedged actor cannot hold prompts for ever."""
        leased = self._prompts.of(PromptState.LEASED).values()
        overdue = list(takewhile(lambda entry: entry.deadline_s <= now_s, leased))
        for entry in overdue:
            self.last_error = f"{entry.actor}: held a lease longer than {self._lease_deadline_s:g} s"
            self._take_back([entry], self.last_error)
        return len(overdue)

    # The learner side

    def allot(
        self, step: int, rank: int, world: int, count: int, learner_version: int
    ) -> tuple[PulledGroup, ...] | None:
        """The `count` groups of (step, rank), or None while there are not enough fresh ones queued. A rank is
        the number of a learner worker, 0 to `world` - 1.

        The first rank to ask decides for the whole step, all or nothing; whoever asks again gets the same
        groups, with replacements for those reported lost.

        Raises:
            RunError: the ranks of a step disagree about its shape, or this rank's part was already trained
                on.
        """
        self._drop_stale(learner_version)
        if step not in self._steps and not self._open_step(step, world, count, learner_version):
            return None
        state = self._steps[step]
        if (state.world, state.count) != (world, count) or not 0 <= rank < world:
            raise RunError(
                f"rank {rank} pulled step {step} as {world} x {count} groups, but it was allotted as "
                f"{state.world} x {state.count}"
            )
        if rank in state.acked:
            raise RunError(f"rank {rank} pulled step {step} again after it had been trained on")
        if not self._fill(state, rank):
            return None
        return tuple(PulledGroup.of(self._prompts[lease_id].finished) for lease_id in state.slots[rank])

    def lost(self, step: int, rank: int, lease_ids: Sequence[int]) -> int:
        """Groups of (step, rank) that could not be fetched: issue them again, and leave their slots to be
        filled.
        """
        slots = self._steps[step].slots[rank] if step in self._steps else []
        gone = [lease_id for lease_id in lease_ids if lease_id in slots]
        for lease_id in gone:
            slots.remove(lease_id)
        self._take_back([self._prompts[lease_id] for lease_id in gone], LOST)
        return len(gone)

    def ack(self, step: int, rank: int) -> int:
        """(step, rank) was trained on; returns how many groups that newly counts.

        Raises:
            RunError: the step was never pulled, or its groups were not all delivered.
        """
        state = self._steps.get(step)
        if state is None and step > self._highest_step:
            raise RunError(f"rank {rank} acknowledged step {step}, which nobody has pulled")
        if state is None or rank in state.acked:
            return 0
        if len(state.slots[rank]) != state.count:
            raise RunError(
                f"rank {rank} acknowledged step {step} while {state.count} groups were not all delivered"
            )
        for lease_id in state.slots[rank]:
            entry = self._prompts[lease_id]
            staleness = max(0, state.learner_version - entry.finished.version_min)
            self._count["staleness_sum"] += staleness
            self._count["staleness_max"] = max(self._count["staleness_max"], staleness)
            self._leave(entry, "trained")
        self.journal.trained(state.slots[rank], step=step, rank=rank, version=state.learner_version)
        state.slots[rank] = []
        state.acked.add(rank)
        if len(state.acked) == state.world:
            del self._steps[step]
        return state.count

    # Checkpoint and state

    def snapshot(self) -> dict[str, Any]:
        """JSON-able: the feed's place, the counters, every prompt that is out, and under `journal` what
        happened since the last snapshot.
        """
        return {
            "version": SNAPSHOT_VERSION,
            "feed": self._feed.snapshot(),
            "next_id": self._next_id,
            "counters": dict(self._count),
            "outstanding": [[e.lease_id, e.user, e.position, e.attempt] for e in self._prompts],
            "journal": self.journal.take(),
        }

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go back to `snapshot` (None: the very start): what was out is issued again first, then the feed
        goes on.

        A ledger that was live keeps its lease ids and attempts above all it ever gave out, so nothing that an
        actor pushes for an older life can be taken for the answer to a newer lease.

        Raises:
            RunError: the snapshot has another version, or belongs to another feed.
        """
        if snapshot is not None and snapshot.get("version") != SNAPSHOT_VERSION:
            raise RunError(
                f"the checkpoint's queue has version {snapshot.get('version')}, this release reads "
                f"{SNAPSHOT_VERSION}: resume with the release that wrote it"
            )
        if snapshot is None and self._unseen:
            return  # what the rollouts did meanwhile belongs to the very start
        if snapshot is None:
            self._feed.rewind()
        else:
            self._feed.restore(snapshot["feed"])
        attempts = {entry.lease_id: entry.attempt for entry in self._prompts}
        self._reset()
        if snapshot is not None:
            self._next_id = max(self._next_id, snapshot["next_id"])
            self._count.update(snapshot["counters"])
            for lease_id, user, position, attempt in snapshot["outstanding"]:
                highest = max(attempt, attempts.get(lease_id, 0))
                self._prompts.insert(
                    LedgerEntry(lease_id=lease_id, user=user, position=position, attempt=highest)
                )
        self.journal.resumed([entry.lease_id for entry in self._prompts])

    def status(self) -> QueueStatus:
        """All counts at this moment."""
        return QueueStatus(
            **{name: self._count[name] for name in _COUNTERS if name != "staleness_sum"},
            **{state.name.lower(): self._prompts.count(state) for state in PromptState},
            limit=self._limit,
            queued_bytes=self._prompts.queued_bytes,
            max_groups=self._max_groups,
            max_bytes=self._max_bytes,
            epoch=self._feed.epoch,
            cursor=self._feed.cursor,
            staleness_mean=self._count["staleness_sum"] / max(1, self._count["trained"]),
            last_error=self.last_error,
            restored=True,
            given_up=tuple(self._suspects.given_up),
            actors=self._processes.actors,
            leased_by=dict(Counter(entry.actor for entry in self._prompts.of(PromptState.LEASED).values())),
        )

    @property
    def _unseen(self) -> bool:
        """Whether no learner has been given a group yet."""
        return self._highest_step < 0 and not self._count["trained"]

    def _admit(self, actor: str, incarnation: str) -> bool:
        """Whether this process of the actor is the latest; what an earlier one held is taken back."""
        fate = self._processes.enter(actor, incarnation)
        if fate == "restarted" and self.revoke(actor, ""):
            self.last_error = f"{actor}: restarted"
        return fate != "gone"

    def _issue(
        self, entry: LedgerEntry, actor: str, incarnation: str, now_s: float, version: int | None = None
    ) -> Lease:
        lease = entry.lend(actor, incarnation, now_s, now_s + self._lease_deadline_s, version)
        self._count["reissued"] += entry.attempt > 1
        self._prompts.move(entry, PromptState.LEASED)
        return lease

    def _grant_by_bytes(self) -> int:
        """How many more groups of the mean size the queue would hold, with those that are leased."""
        leased = self._prompts.count(PromptState.LEASED)
        return int((self._max_bytes - self._prompts.queued_bytes) / self._size.mean) - leased

    def _grant(self, count: int) -> int:
        """How many of `count` prompts may be leased now."""
        leased, queued = self._prompts.count(PromptState.LEASED), self._prompts.count(PromptState.QUEUED)
        self._limit = self._max_groups if self._flow is None else self._flow.limit(count)
        free = max(0, min(self._limit - leased - queued, self._grant_by_bytes()))
        return grant_batch(count, free=free, leased=leased, queued=queued, wanted=self._refused)

    def _draw(self) -> LedgerEntry:
        user, position = self._feed.draw()
        entry = LedgerEntry(lease_id=self._next_id, user=user, position=position)
        self._next_id += 1
        self._count["issued"] += 1
        self._prompts.insert(entry)
        return entry

    def _held(self, actor: str, incarnation: str, lease_id: int, attempt: int) -> LedgerEntry | None:
        entry = self._prompts.of(PromptState.LEASED).get(lease_id)
        holder = (actor, incarnation, attempt)
        return entry if entry and (entry.actor, entry.incarnation, entry.attempt) == holder else None

    def _has_room_for(self, push: Push) -> bool:
        return self._prompts.queued_bytes + push.nbytes <= self._max_bytes

    def _open_step(self, step: int, world: int, count: int, learner_version: int) -> bool:
        oldest = self._take_queued(world * count)
        if oldest is None:
            return False
        slots = [oldest[rank * count : (rank + 1) * count] for rank in range(world)]
        self._steps[step] = LedgerStep(
            world=world, count=count, learner_version=learner_version, slots=slots, acked=set()
        )
        self._highest_step = max(self._highest_step, step)
        return True

    def _fill(self, state: LedgerStep, rank: int) -> bool:
        missing = state.count - len(state.slots[rank])
        if missing == 0:
            return True
        taken = self._take_queued(missing)
        state.slots[rank] += taken or []
        return taken is not None

    def _take_queued(self, count: int) -> list[int] | None:
        """Pull the `count` oldest groups; None, and a note of how many are wanted, when there are fewer."""
        queued = self._prompts.of(PromptState.QUEUED)
        self._refused = count if len(queued) < count else 0
        if self._refused:
            return None
        taken = list(islice(queued.values(), count))
        for entry in taken:
            self._prompts.move(entry, PromptState.PULLED)
        return [entry.lease_id for entry in taken]

    def _drop_stale(self, learner_version: int) -> None:
        old = self._prompts.queued_before(learner_version - self._max_staleness)
        self._drop(old, "stale", f"learner at version {learner_version}")

    def _give_up(self, entries: Sequence[LedgerEntry]) -> None:
        """What an actor could not serve; `last_error` has the reason."""
        self._drop(entries, "invalid", self.last_error)

    def _drop(self, entries: Sequence[LedgerEntry], counter: str, why: str) -> None:
        for entry in entries:
            self._leave(entry, counter)
        self.journal.dropped([entry.lease_id for entry in entries], counter, why)

    def _take_back(self, entries: Sequence[LedgerEntry], why: str) -> None:
        for entry in entries:
            self._suspects.note_loss(entry)
            self._prompts.move(entry, PromptState.WAITING)
        self.journal.taken_back([entry.lease_id for entry in entries], why)

    def _leave(self, entry: LedgerEntry, counter: str) -> None:
        self._prompts.remove(entry)
        self._suspects.forget(entry)
        self._count[counter] += 1
