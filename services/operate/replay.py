"""A run's journal played again: where every prompt is, and what cannot have happened.

    (new) -> leased -> returned -> trained
    leased, returned -> waiting -> leased;    leased, returned, waiting -> dropped (stale or invalid)

The rules are those of `sluice.actors.queue.ledger`; the events are described in
`sluice.actors.queue.journal`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MOST_PROBLEMS = 20
_ENDS = ("trained", "stale", "invalid")


class Replay:
    """Takes events one after the other.

    >>> replay = Replay(examples=4)
    >>> replay.play([{"event": "leased", "leases": [[0, 1, 7, 3]]}])
    >>> replay.play([{"event": "trained", "leases": [0], "step": 0}])
    >>> replay.problems
    ['event 2: prompt 0 was trained while it was leased']
    """

    def __init__(self, examples: int, draw: Callable[[int], tuple[int, int]] | None = None) -> None:
        """`examples` are the prompts of an epoch; `draw` gives the (user, position) that the feed has at a
        place, None where the data are not there to ask.
        """
        self._examples, self._draw = examples, draw
        self._state: dict[int, str] = {}  # of those in flight
        self._place: dict[int, int] = {}  # in the feed, of those in flight
        self._attempts: dict[int, int] = {}
        self._ended: set[int] = set()
        self._trained: dict[int, set[int]] = {}  # step -> ranks
        self._issued = Counter[int]()  # epoch -> prompts
        self._ends = {name: Counter[int]() for name in _ENDS}
        self._events = self._found = 0
        self.problems: list[str] = []  # the first ones

    @property
    def in_flight(self) -> list[int]:
        """Lease ids that have been issued and have not ended."""
        return sorted(self._state)

    @property
    def steps(self) -> int:
        """Optimizer steps until the last one that a worker has trained on."""
        return max(self._trained, default=-1) + 1

    @property
    def more_problems(self) -> int:
        """Those that `problems` leaves out."""
        return self._found - len(self.problems)

    def counts(self) -> dict[str, int]:
        """Issued, trained, stale, invalid and in flight, over all epochs."""
        ends = {name: sum(self._ends[name].values()) for name in _ENDS}
        return {"issued": sum(self._issued.values()), **ends, "in_flight": len(self._state)}

    def epochs(self) -> list[dict[str, int]]:
        """The same of each epoch that was begun."""
        flying = Counter(place // self._examples for place in self._place.values())
        return [
            {
                "epoch": epoch,
                "issued": self._issued[epoch],
                **{name: self._ends[name][epoch] for name in _ENDS},
                "in_flight": flying[epoch],
            }
            for epoch in sorted(self._issued)
        ]

    def play(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Go on by these events."""
        plays = {
            "leased": self._play_leased,
            "returned": self._play_returned,
            "taken_back": self._play_taken_back,
            "dropped": self._play_dropped,
            "trained": self._play_trained,
            "resumed": self._play_resumed,
        }
        for event in events:
            self._events += 1
            if (kind := event.get("event")) in plays:
                plays[kind](event)
            else:
                self._note(f"{kind!r} is no event")

    def finish(self) -> None:
        """Whether every step from the first to the last one was trained on. A forked run begins later."""
        missing = sorted(set(range(min(self._trained, default=0), self.steps)) - set(self._trained))
        if missing:
            self._note(f"{len(missing)} steps were never trained on, the first of them {missing[0]}")

    def _play_leased(self, event: Mapping[str, Any]) -> None:
        for lease_id, attempt, user, position in event["leases"]:
            state = self._state.get(lease_id)
            if lease_id in self._ended:
                self._note(f"prompt {lease_id} was leased after its end")
                continue
            if state is None:
                place = sum(self._issued.values())
                self._issued[place // self._examples] += 1
                self._place[lease_id] = place
                if self._draw is not None and (wanted := self._draw(place)) != (user, position):
                    self._note(
                        f"prompt {lease_id} is user {user} at position {position}, and the feed has user "
                        f"{wanted[0]} at position {wanted[1]} at its place {place}"
                    )
            elif state != "waiting":
                self._note(f"prompt {lease_id} was leased while it was {state}")
            if attempt <= self._attempts.get(lease_id, 0):
                self._note(f"attempt {attempt} of prompt {lease_id} came after a later one")
            self._attempts[lease_id] = attempt
            self._state[lease_id] = "leased"

    def _play_returned(self, event: Mapping[str, Any]) -> None:
        for lease_id, attempt, *_ in event["leases"]:
            if attempt != self._attempts.get(lease_id):
                self._note(f"attempt {attempt} of prompt {lease_id} was returned and is not the latest")
            self._move(lease_id, "returned", ("leased",))

    def _play_taken_back(self, event: Mapping[str, Any]) -> None:
        for lease_id in event["leases"]:
            self._move(lease_id, "waiting", ("leased", "returned"), done="taken back")

    def _play_dropped(self, event: Mapping[str, Any]) -> None:
        for lease_id in event["leases"]:
            self._end(lease_id, event["as"], ("leased", "returned", "waiting"), done="dropped")

    def _play_trained(self, event: Mapping[str, Any]) -> None:
        step, rank = event["step"], event.get("rank", 0)
        ranks = self._trained.setdefault(step, set())
        if rank in ranks:
            self._note(f"worker {rank} trained on step {step} twice")
        ranks.add(rank)
        for lease_id in event["leases"]:
            self._end(lease_id, "trained", ("returned",), done="trained")

    def _play_resumed(self, event: Mapping[str, Any]) -> None:
        if sorted(event["leases"]) != self.in_flight:
            differing = sorted(set(event["leases"]) ^ set(self._state))
            self._note(
                f"the run was resumed with other prompts in flight than it had: {differing[:5]} differ"
            )
        self._state = dict.fromkeys(event["leases"], "waiting")

    def _end(self, lease_id: int, how: str, allowed: tuple[str, ...], done: str) -> None:
        if not self._move(lease_id, how, allowed, done):
            return
        del self._state[lease_id]
        self._attempts.pop(lease_id, None)
        self._ended.add(lease_id)
        self._ends[how][self._place.pop(lease_id) // self._examples] += 1

    def _move(self, lease_id: int, to: str, allowed: tuple[str, ...], done: str = "") -> bool:
        state = self._state.get(lease_id)
        if state not in allowed:
            was = state or ("ended" if lease_id in self._ended else "never leased")
            self._note(f"prompt {lease_id} was {done or to} while it was {was}")
        if state is None:
            return False
        self._state[lease_id] = to
        return True

    def _note(self, problem: str) -> None:
        self._found += 1
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(f"event {self._events}: {problem}")
