"""SIGTERM as Ctrl-C: what is under way ends, and takes with it what it has begun."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: nobody is there to ask."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While this lasts SIGTERM ends the command as Ctrl-C does, with all that it has started.

    Signals reach the main thread alone; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
