"""What goes into and comes out of the rollout ledger: leases, finished groups, replies, the state of the
queue.
"""

from dataclasses import dataclass
from typing import Any

POLL_S = 5.0  # bound of one long poll
# On top of a long poll's own bound: how late its answer may be before the queue counts as unreachable. It
# covers the time in which Ray restarts the queue actor.
GRACE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One prompt lent to a rollout actor, which takes a batch of leases at a time
    (`rollout.prompts_per_lease`).
    """

    lease_id: int  # unique in the run; kept when the prompt is issued again
    attempt: int  # 1 for the first actor that got it, one more for each later one
    user: int
    position: int
    version: int | None = None  # of the weights that must generate for it; None: the newest there are
    companion: bool = False  # generated for the sake of its batch alone: its own group is there already


@dataclass(frozen=True, kw_only=True)
class Push:
    """One finished group, by reference."""

    lease_id: int
    attempt: int
    reference: Any  # ObjectRef of an Arrow IPC stream of ROLLOUT_GROUP rows
    nbytes: int  # the group's share of the stream
    version_min: int  # oldest weights that produced a token of it
    version_max: int
    row: int = 0  # of the stream
    ranker_version: str = ""  # that scored it


@dataclass(frozen=True, kw_only=True)
class PushReply:
    """What became of each pushed lease id."""

    accepted: tuple[int, ...] = ()
    late: tuple[int, ...] = ()  # no longer this actor's: expired, revoked, or finished by another
    full: tuple[int, ...] = ()  # no room by bytes at the moment: keep the group and push again
    oversized: tuple[int, ...] = ()  # larger than the whole queue may be; counted as invalid


@dataclass(frozen=True, kw_only=True)
class PulledGroup:
    """A group allotted to a learner rank."""

    lease_id: int
    attempt: int
    reference: Any
    row: int  # of the stream that the reference names

    @classmethod
    def of(cls, push: Push) -> "PulledGroup":
        """What the learner needs of a pushed group."""
        return cls(lease_id=push.lease_id, attempt=push.attempt, reference=push.reference, row=push.row)


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """The ledger at one moment. `issued = trained + stale + invalid + in_flight` always holds."""

    issued: int
    trained: int
    stale: int  # dropped at allotment, too old to train on
    invalid: int  # given up: the ranker failed, or the group was oversized
    leased: int  # with a rollout actor
    queued: int
    pulled: int  # with the learner, not yet trained
    waiting: int  # to be issued again
    queued_bytes: int
    max_groups: int  # bound of leased + queued
    limit: int  # of leased + queued when prompts were last asked for: max_groups, or less by flow control
    max_bytes: int  # bound of queued_bytes
    reissued: int  # leases issued a second time or more
    late: int  # groups refused because the lease had moved on
    epoch: int
    cursor: int
    staleness_mean: float  # weight versions, over the groups trained so far
    staleness_max: int
    last_error: str  # of the rollout side, "" when there was none
    restored: bool  # False: the queue actor was restarted and refuses work until it is restored
    actors: int  # that have asked for prompts since the queue began, or was restored
    leased_by: dict[str, int]  # leases per rollout actor
    given_up: tuple[str, ...] = ()  # the last prompts that took their actor down too often, a sentence each

    @property
    def in_flight(self) -> int:
        """Issued and not yet trained or dropped."""
        return self.leased + self.queued + self.pulled + self.waiting

    @property
    def accounting(self) -> dict[str, int]:
        """The five numbers of the invariant."""
        return {name: getattr(self, name) for name in ("issued", "trained", "stale", "invalid", "in_flight")}
