"""What the rollout ledger keeps of a prompt on its way, and of a step that is being trained on."""

from dataclasses import dataclass
from enum import Enum

from sluice.actors.queue.leases import Lease, Push


class PromptState(Enum):
    """Where a prompt is, as long as it is in flight."""

    WAITING, LEASED, QUEUED, PULLED = range(4)


@dataclass(kw_only=True)
class LedgerEntry:
    """One prompt in flight."""

    lease_id: int
    user: int
    position: int
    attempt: int = 0
    failures: int = 0  # times it was with an actor that did not finish it
    state: PromptState = PromptState.WAITING
    actor: str = ""
    incarnation: str = ""
    leased_s: float = 0.0
    deadline_s: float = 0.0
    push: Push | None = None  # the finished group, while it is queued or pulled

    def lend(self, actor: str, incarnation: str, now_s: float, deadline_s: float) -> Lease:
        """To this process of an actor, until the deadline."""
        self.attempt += 1
        self.actor, self.incarnation, self.leased_s, self.deadline_s = actor, incarnation, now_s, deadline_s
        return Lease(lease_id=self.lease_id, attempt=self.attempt, user=self.user, position=self.position)

    @property
    def finished(self) -> Push:
        """The group of a prompt that is queued or pulled."""
        assert self.push is not None, f"prompt {self.lease_id} is {self.state.name} and has no group yet"
        return self.push


@dataclass(kw_only=True)
class LedgerStep:
    """The groups that the learner's workers got for one step."""

    world: int
    count: int
    learner_version: int
    slots: list[list[int]]  # [world], lease ids of each rank
    acked: set[int]
