"""The weight board: where the newest weights are. It holds one reference, to the newest packed copy in the object
store.

The learner publishes version after version; rollout actors ask for anything newer than what they have, through a long
poll that they check on between engine steps, so that neither side ever waits for the other. The starting policy, which
every engine begins with, is version 0 and is never published. An older copy is released
as soon as a newer one is there: whoever is fetching it keeps it alive by its own reference.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from actors.calls import answer, reason_of
from catalog.errors import RunError
from cluster.metrics import MetricSet
from learner.weights import PackedWeights

_POLL_S = 30.0


@dataclass(frozen=True, kw_only=True)
class BoardStatus:
    """What a board holds and has seen."""

    version: int  # 0: nothing was published, the starting policy counts
    nbytes: int
    published: int
    served: int  # answers that carried weights


class WeightBoard:
    """The board. Decorate with `ray.remote` where it is launched."""

    def __init__(self, what: str = "weights") -> None:
        """`what` is published, for messages; another kind of thing with versions may have a board of its own."""
        self._what = what
        self._version, self._nbytes, self._published, self._served = 0, 0, 0, 0
        self._references: list[Any] = []
        self._changed = asyncio.Condition()

    async def publish(self, version: int, references: list[Any], nbytes: int) -> None:
        """Replace what the board holds. `references` is a list so that Ray passes the references, not the weights.

        Raises:
            RunError: the version is not higher than the one on the board.
        """
        async with self._changed:
            if version <= self._version:
                raise RunError(
                    f"{self._what} version {version} was published after version {self._version}; versions must "
                    "increase, so whoever starts again goes on from the board's latest version"
                )
            self._version, self._references, self._nbytes = version, list(references), nbytes
            self._published += 1
            self._changed.notify_all()

    async def latest(self, after_version: int, wait_s: float) -> tuple[int, list[Any]] | None:
        """The newest version and its references once it is above `after_version`; None when `wait_s` passes without."""
        async with self._changed:
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait_for(lambda: self._version > after_version)
            except TimeoutError:
                return None
            self._served += 1
            return self._version, self._references

    async def status(self) -> BoardStatus:
        """Counts so far."""
        return BoardStatus(version=self._version, nbytes=self._nbytes, published=self._published, served=self._served)


class WeightPublisher:
    """The learner's side."""

    def __init__(self, handle: Any, *, timeout_s: float = 60.0) -> None:
        self._handle, self._timeout_s = handle, timeout_s
        self._metrics = MetricSet()

    def publish(self, weights: PackedWeights) -> float:
        """Put the weights into the object store once and announce them; returns the seconds that took."""
        started_s = time.monotonic()
        reference = self._handle.publish.remote(weights.version, [ray.put(weights)], weights.nbytes)
        answer(reference, f"the weight board (publish version {weights.version})", self._timeout_s)
        seconds = time.monotonic() - started_s
        self._metrics.observe("sluice_weight_publish_seconds", seconds)
        return seconds

    def latest_version(self) -> int:
        """The version on the board, 0 when nothing was published."""
        return answer(self._handle.status.remote(), "the weight board (status)", self._timeout_s).version


class WeightSource:
    """A rollout actor's side. Picklable before its first use."""

    board = "weight board"  # for messages

    def __init__(self, handle: Any, *, fetch_s: float = 60.0, max_failures: int = 10) -> None:
        """`max_failures` failed calls in a row mean that the board is gone for good."""
        self._handle, self._fetch_s, self._max_failures = handle, fetch_s, max_failures
        self._asked: Any = None  # long poll under way
        self._coming: Any = None  # weights on their way to this node
        self._coming_version = self._lost_version = 0
        self._deadline_s = 0.0
        self._failures = 0
        self.lost = 0  # versions whose weights died with the learner that put them

    def poll(self, current_version: int) -> PackedWeights | None:
        """Weights newer than `current_version` if they have arrived on this node. Never blocks.

        Raises:
            RunError: the board failed `max_failures` times in a row.
        """
        if self._coming is None:
            self._ask(max(current_version, self._lost_version))
        if self._coming is None:
            return None
        if not ray.wait([self._coming], timeout=0, fetch_local=True)[0]:
            if time.monotonic() >= self._deadline_s:
                self._lose()
            return None
        weights = self._fetch()
        return weights if weights is not None and weights.version > current_version else None

    def newest(self, current_version: int, wait_s: float) -> PackedWeights | None:
        """The newest weights above `current_version`, waited for; for an engine that has just started."""
        reference = self._handle.latest.remote(max(current_version, self._lost_version), 0.0)
        self._take(answer(reference, f"the {self.board} (latest)", wait_s))
        return None if self._coming is None else self._fetch()

    def _ask(self, after_version: int) -> None:
        if self._asked is None:
            self._asked = self._handle.latest.remote(after_version, _POLL_S)
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        reference, self._asked = self._asked, None
        try:
            self._take(ray.get(reference, timeout=self._fetch_s))
            self._failures = 0
        except RayActorError as error:
            self._failures += 1
            if self._failures >= self._max_failures:
                raise RunError(f"the {self.board} failed {self._failures} times; last: {reason_of(error)}") from None

    def _take(self, found: tuple[int, list[Any]] | None) -> None:
        if found is not None:
            self._coming_version, (self._coming,) = found
            self._deadline_s = time.monotonic() + self._fetch_s

    def _fetch(self) -> PackedWeights | None:
        try:
            weights = ray.get(self._coming, timeout=self._fetch_s)
        except (ObjectLostError, GetTimeoutError):
            self._lose()
            return None
        self._coming = None
        return weights

    def _lose(self) -> None:
        # Asking again would bring the same dead reference. The learner that follows publishes a higher version.
        self._lost_version, self._coming = self._coming_version, None
        self.lost += 1
