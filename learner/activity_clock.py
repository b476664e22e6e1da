"""Where the time of a component goes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

WAIT = (
    "wait_"  # what begins with this is idle time: nothing can be done until somebody else has done something
)


class ActivityClock:
    """One activity at a time, from the opening of the book on, so that what all of them took adds up to the
    time since.

    Belongs to one thread, or to one chain of coroutines.
    """

    def __init__(self, activity: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`activity` is what the component does whenever it says nothing else."""
        self._activity, self._clock = activity, clock
        self._since_s = clock()
        self._seconds: dict[str, float] = {activity: 0.0}

    @contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """What happens inside is the activity `name`; afterwards the component goes on with what it did
        before.
        """
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def seconds(self) -> dict[str, float]:
        """Seconds of every activity so far, the present one up to now."""
        self._switch(self._activity)
        return dict(self._seconds)

    def _switch(self, activity: str) -> str:
        now_s = self._clock()
        self._seconds[self._activity] = self._seconds.get(self._activity, 0.0) + now_s - self._since_s
        before, self._activity, self._since_s = self._activity, activity, now_s
        return before


def is_wait(activity: str) -> bool:
    """Whether this is idle time."""
    return activity.startswith(WAIT)


def idle_seconds(seconds: Mapping[str, float]) -> float:
    """The waits among the seconds of a book."""
    return sum(spent for activity, spent in seconds.items() if is_wait(activity))
