"""Every second of a component belongs to exactly one activity."""

import pytest

from sluice.learner.activity_clock import ActivityClock, idle_seconds


class Clock:
    """Moves when told to."""

    def __init__(self, now_s=100.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


def test_nested_activities_add_up_to_the_wall_time():
    clock = Clock()
    book = ActivityClock("serve", clock)
    clock.now_s += 1
    with book.activity("generate"):
        clock.now_s += 2
        with book.activity("wait_ranker"):
            clock.now_s += 4
        clock.now_s += 8
    clock.now_s += 16
    with book.activity("wait_room"):
        clock.now_s += 32
        seconds = book.seconds()  # the present activity counts up to now
    assert seconds == {"serve": 17, "generate": 10, "wait_ranker": 4, "wait_room": 32}
    assert sum(seconds.values()) == clock.now_s - 100
    assert idle_seconds(seconds) == 36


def test_an_error_ends_the_activity():
    clock = Clock()
    book = ActivityClock("serve", clock)
    with pytest.raises(MemoryError), book.activity("generate"):
        clock.now_s += 2
        raise MemoryError
    clock.now_s += 1
    assert book.seconds() == {"serve": 1, "generate": 2}
