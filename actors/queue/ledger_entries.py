"""What the rollout ledger keeps of a prompt on its way, of a step that is being trained on, and of actors."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

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
    rejections: int = 0  # attempts that ended with its being given up
    failures: int = 0  # attempts that whoever had it did not finish
    state: PromptState = PromptState.WAITING
    actor: str = ""
    incarnation: str = ""
    leased_s: float = 0.0
    deadline_s: float = 0.0
    push: Push | None = None  # the finished group, while it is queued or pulled

    def lend(
        self, actor: str, incarnation: str, now_s: float, deadline_s: float, version: int | None
    ) -> Lease:
        """To this process of an actor, until the deadline."""
        self.attempt += 1
        self.actor, self.incarnation, self.leased_s, self.deadline_s = actor, incarnation, now_s, deadline_s
        return Lease(
            lease_id=self.lease_id,
            attempt=self.attempt,
            user=self.user,
            position=self.position,
            version=version,
        )

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


class ActorProcesses:
    """Which process of each rollout actor is the latest; a restart makes a new one under the old name.

    A new one means that the old process is gone, and with it all it had leased or put. What the old one had
    asked for before it died, and is heard of only now, is not granted.
    """

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}
        self._gone: set[str] = set()

    @property
    def actors(self) -> int:
        """That are known."""
        return len(self._latest)

    def enter(self, actor: str, incarnation: str) -> Literal["known", "restarted", "gone"]:
        """A process asks for prompts."""
        if incarnation in self._gone:
            return "gone"
        before = self._latest.get(actor, incarnation)
        self._latest[actor] = incarnation
        if before == incarnation:
            return "known"
        self._gone.add(before)
        return "restarted"

    def forget_actors(self) -> None:
        """Start over; processes that are gone stay so."""
        self._latest.clear()


class GroupSize:
    """The mean size of the groups so far; one that is assumed until there is a group."""

    def __init__(self, assumed: int) -> None:
        self._assumed, self._groups, self._bytes = assumed, 0, 0

    @property
    def mean(self) -> float:
        """Bytes, 1 at least."""
        return max(1.0, self._bytes / self._groups if self._groups else self._assumed)

    def add(self, nbytes: int) -> None:
        """A group of this size came."""
        self._groups, self._bytes = self._groups + 1, self._bytes + nbytes
