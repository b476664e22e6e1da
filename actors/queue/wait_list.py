"""Callers of an actor that wait in line for what is not there yet. Belongs to one event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class WaitList(Generic[Answer]):
    """First come, first served; a caller that gave up (its future is cancelled) leaves by itself."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Callable[[], Answer | None], asyncio.Future[Answer | None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, attempt: Callable[[], Answer | None], who: str = "") -> asyncio.Future[Answer | None]:
        """Stand at the end; the future gets the first truthy value of `attempt`, or what it raises."""
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((who, attempt, future))
        return future

    def release(self, who: str) -> None:
        """Let the callers of that name go with nothing: their futures get None."""
        for name, _, future in self._waiting:
            if name == who and not future.done():
                future.set_result(None)

    def wake(self, everyone: bool = False) -> bool:
        """Try for the callers in their order, up to the first in vain unless `everyone` is to be tried;
        returns whether anybody got something.
        """
        woken = False
        for _ in range(len(self._waiting)):
            caller = self._waiting.popleft()
            _, attempt, future = caller
            if future.done():
                continue
            if _settle(attempt, future):
                woken = True
            elif everyone:
                self._waiting.append(caller)
            else:
                self._waiting.appendleft(caller)
                break
        return woken


def _settle(attempt: Callable[[], Answer | None], future: asyncio.Future[Answer | None]) -> bool:
    try:
        answer = attempt()
    except Exception as error:  # belongs to the caller, whose wait it ends
        future.set_exception(error)
        return True
    if answer:
        future.set_result(answer)
    return bool(answer)
