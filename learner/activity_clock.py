"""Where the time of a component goes: seconds by activity, waits among them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# An activity whose name begins with this is idle time: nothing can be done until another component acts.
WAIT = "wait_"


class ActivityClock:
    """The seconds that each activity of a component took.

    There is one activity at a time, so the seconds of all add up to the time since the clock was made. A
    clock belongs to one thread, or to one chain of coroutines.

    Example:
        >>> now_s = iter([0.0, 2.0, 5.0, 6.0])
        >>> clock = ActivityClock("train", clock=lambda: next(now_s))
        >>> with clock.activity("wait_for_batch"):
        ...     pass
        >>> clock.seconds()
        {'train': 3.0, 'wait_for_batch': 3.0}
    """

    def __init__(self, activity: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`activity` is what the component does whenever it names no other; `clock` gives seconds."""
        self._activity, self._clock = activity, clock
        self._since_s = clock()
        self._seconds: dict[str, float] = {activity: 0.0}

    @contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Count what happens inside as the activity `name`; afterwards the one before goes on."""
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
    """Whether this activity is idle time."""
    return activity.startswith(WAIT)


def idle_seconds(seconds: Mapping[str, float]) -> float:
    """The sum of the waits among the seconds of activities."""
    return sum(spent for activity, spent in seconds.items() if is_wait(activity))
