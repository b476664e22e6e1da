"""A board says where the newest version of something is: it holds one reference, to the copy in the object
store.

Whoever makes the versions publishes one after the other; whoever uses them asks for anything newer than what
it has, through a long poll beside its own work, so that neither side ever waits for the other. An older copy
is released as soon as a newer one is there: whoever is fetching it keeps it alive by its own reference.
Version 0, which everybody begins with, is never published.

`sluice.actors.boards.weight_board` and `sluice.actors.boards.catalogue_board` are the boards there are.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from sluice.actors.calls import get_result, reason_of
from sluice.catalog.errors import RunError, SluiceError
from sluice.cluster.environment import lower_own_priority

_POLL_S = 30.0
GRACE_S = 60.0  # how late the answer of a long poll may be: the time in which Ray restarts the board


@dataclass(frozen=True, kw_only=True)
class BoardStatus:
    """What a board holds and has seen."""

    version: int  # 0: nothing was published, what everybody began with counts
    nbytes: int
    published: int
    served: int  # answers that carried a version


class VersionBoard:
    """The board. Decorate the class of a kind with `ray.remote` where it is launched."""

    what: ClassVar[str]  # is published; for messages

    def __init__(self) -> None:
        self._version, self._nbytes, self._published, self._served = 0, 0, 0, 0
        self._references: list[Any] = []
        self._changed = asyncio.Condition()

    async def publish(self, version: int, references: list[Any], nbytes: int) -> None:
        """Replace what the board holds. `references` is a list so that Ray passes the references, not what
        they name.

        Raises:
            RunError: the version is not higher than the one on the board.
        """
        async with self._changed:
            if version <= self._version:
                raise RunError(
                    f"{self.what} version {version} was published after version {self._version}; versions "
                    f"must increase, so whoever starts again goes on from the board's latest version"
                )
            self._version, self._references, self._nbytes = version, list(references), nbytes
            self._published += 1
            self._changed.notify_all()

    async def latest(self, after_version: int, wait_s: float) -> tuple[int, list[Any]] | None:
        """The newest version and its references once it is above `after_version`; None when `wait_s` passes
        without.
        """
        async with self._changed:
            if not await self._comes_to_hold(lambda: self._version > after_version, wait_s):
                return None
            return self._version, self._references

    async def _comes_to_hold(self, condition: Callable[[], bool], wait_s: float) -> bool:
        """Wait for a change after which the condition holds, and count the answer; called under the lock."""
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait_for(condition)
        except TimeoutError:
            return False
        self._served += 1
        return True

    async def status(self) -> BoardStatus:
        """Counts so far."""
        return BoardStatus(
            version=self._version, nbytes=self._nbytes, published=self._published, served=self._served
        )


class Versioned(Protocol):
    """What a board's references name."""

    @property
    def version(self) -> int:
        """Above 0."""


Thing = TypeVar("Thing", bound=Versioned)


class VersionSource(Generic[Thing]):
    """The side that uses the versions. Picklable before the first `poll`.

    A thread waits for new versions and fetches them to this node beside the caller's own work, so that the
    caller only pauses to put them into use.
    """

    board: ClassVar[str]  # for messages

    def __init__(self, handle: Any, *, fetch_s: float = 60.0, max_failures: int = 10) -> None:
        """`max_failures` failed calls in a row mean that the board is gone for good."""
        self._handle, self._fetch_s, self._max_failures = handle, fetch_s, max_failures
        self._arrived: queue.SimpleQueue[Thing | SluiceError] | None = None
        self.lost = 0  # versions that died with the process that put them

    def poll(self, current_version: int) -> Thing | None:
        """The newest above `current_version` of the versions that have arrived on this node since the last
        poll.

        Never blocks. A version is handed out once: a caller that loses it asks `newest`.

        Raises:
            RunError: the board failed `max_failures` times in a row.
            SluiceError: what `receive` raises.
        """
        if self._arrived is None:
            self._arrived = queue.SimpleQueue()
            # A daemon: a long poll under way must not keep the actor's process from ending.
            threading.Thread(
                target=self._follow, args=(current_version, self._arrived), name=self.board, daemon=True
            ).start()
        newest: Thing | None = None
        while not self._arrived.empty():
            arrival = self._arrived.get()
            if isinstance(arrival, SluiceError):
                self._arrived = None  # whoever polls again begins anew
                raise arrival
            newest = arrival
        return newest if newest is not None and newest.version > current_version else None

    def newest(self, current_version: int, wait_s: float) -> Thing | None:
        """The newest version above `current_version`, or None: what is on the board now, waited for.

        Raises:
            RunError: the board gave no answer within `wait_s`.
            SluiceError: what `receive` raises.
        """
        latest = get_result(
            self._handle.latest.remote(current_version, 0.0), f"the {self.board} (latest)", wait_s
        )
        return None if latest is None else self._fetch(latest)

    def receive(self, arrived: Any) -> Thing:
        """The version out of what its reference named; raises a SluiceError when that is not what was
        published.
        """
        thing: Thing = arrived
        return thing

    def _follow(self, after_version: int, arrived: "queue.SimpleQueue[Thing | SluiceError]") -> None:
        lower_own_priority()
        failures = 0
        while True:
            try:
                latest = get_result(
                    self._handle.latest.remote(after_version, _POLL_S),
                    f"the {self.board} (latest)",
                    _POLL_S + GRACE_S,
                )
            except RunError as error:
                failures += 1
                if failures >= self._max_failures:
                    arrived.put(RunError(f"the {self.board} failed {failures} times; last: {error}"))
                    return
                continue
            failures = 0
            if latest is None:
                continue
            # Asking again for a lost version would bring the same dead reference. Whoever follows the process
            # that put it publishes a higher version.
            after_version = latest[0]
            try:
                thing = self._fetch(latest)
            except SluiceError as error:
                arrived.put(error)
                return
            if thing is not None:
                arrived.put(thing)

    def _fetch(self, latest: tuple[int, list[Any]]) -> Thing | None:
        """The version on this node; None when it is lost."""
        version, (reference,) = latest
        try:
            arrived = ray.get(reference, timeout=self._fetch_s)
        except (ObjectLostError, GetTimeoutError):
            self.lost += 1
            return None
        # of a transport, say; a thread that ends in silence leaves its caller behind
        except Exception as error:
            raise RunError(
                f"version {version} of the {self.board} can't be fetched: {reason_of(error)}"
            ) from error
        return self.receive(arrived)
