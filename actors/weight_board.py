"""The weight board: where the newest weights are. It holds one reference, to the newest packed copy in the object
store.

The learner publishes version after version; rollout actors ask for anything newer than what they have, through a long
poll beside their engine steps, so that neither side ever waits for the other. The starting policy, which
every engine begins with, is version 0 and is never published. An older copy is released as soon as a newer one is
there: whoever is fetching it keeps it alive by its own reference.
"""

import asyncio
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.calls import answer
from catalog.errors import PolicyError, RunError, SluiceError
from cluster.metrics import MetricSet
from learner.weights import PackedWeights

_POLL_S = 30.0
_GRACE_S = 60.0  # how late the answer of a long poll may be: the time in which Ray restarts the board


@dataclass(frozen=True, kw_only=True)
class BoardStatus:
    """What a board holds and has seen."""

    version: int  # 0: nothing was published, the starting policy counts
    nbytes: int
    published: int
    served: int  # answers that carried weights


class WeightBoard:
    """The board. Decorate with `ray.remote` where it is launched."""

    def __init__(self) -> None:
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
                    f"weights version {version} was published after version {self._version}; versions must "
                    "increase, so a resumed learner goes on from the board's latest version"
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
    """A rollout actor's side. Picklable before its first use.

    A thread waits for new weights, fetches them to this node and verifies them while the engine generates, so that the
    engine only pauses to load them.
    """

    def __init__(self, handle: Any, *, fetch_s: float = 60.0, max_failures: int = 10) -> None:
        """`max_failures` failed calls in a row mean that the board is gone for good."""
        self._handle, self._fetch_s, self._max_failures = handle, fetch_s, max_failures
        self._arrived: queue.SimpleQueue[PackedWeights | SluiceError] | None = None
        self.lost = 0  # versions whose weights died with the learner that put them

    def poll(self, current_version: int) -> PackedWeights | None:
        """The newest weights above `current_version` that have arrived on this node. Never blocks.

        Raises:
            RunError: the board failed `max_failures` times in a row.
            PolicyError: weights arrived damaged.
        """
        if self._arrived is None:
            self._arrived = queue.SimpleQueue()
            # A daemon: a long poll under way must not keep the actor's process from ending.
            threading.Thread(target=self._fetch, args=(current_version,), name="weights", daemon=True).start()
        newest = None
        while not self._arrived.empty():
            newest = self._arrived.get()
            if isinstance(newest, SluiceError):
                self._arrived = None  # whoever polls again begins anew
                raise newest
        return newest if newest is not None and newest.version > current_version else None

    def newest(self, current_version: int, wait_s: float) -> PackedWeights | None:
        """The newest weights above `current_version`, waited for; for an engine that has just started."""
        found = answer(self._handle.latest.remote(current_version, 0.0), "the weight board (latest)", wait_s)
        return None if found is None else self._take(found)

    def _fetch(self, after_version: int) -> None:
        arrived, failures = self._arrived, 0
        while True:
            try:
                found = answer(
                    self._handle.latest.remote(after_version, _POLL_S), "the weight board (latest)", _POLL_S + _GRACE_S
                )
                failures = 0
                weights = None if found is None else self._take(found)
            except RunError as error:
                failures += 1
                if failures >= self._max_failures:
                    arrived.put(RunError(f"the weight board failed {failures} times; last: {error}"))
                    return
                continue
            except PolicyError as error:
                arrived.put(error)
                return
            # Asking again for lost weights would bring the same dead reference. The learner that follows publishes a
            # higher version.
            after_version = after_version if found is None else found[0]
            if weights is not None:
                arrived.put(weights)

    def _take(self, found: tuple[int, list[Any]]) -> PackedWeights | None:
        """The weights on this node, verified; None when they are lost."""
        _, (reference,) = found
        try:
            weights = ray.get(reference, timeout=self._fetch_s)
        except (ObjectLostError, GetTimeoutError):
            self.lost += 1
            return None
        weights.verify()
        return weights
