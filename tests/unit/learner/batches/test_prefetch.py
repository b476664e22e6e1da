"""Batches fetched one step ahead: the same ones, at the version they are trained at, and none beyond the last
step.
"""

import threading

import pytest

from sluice.catalog.errors import RunError
from sluice.learner.batches.prefetch import Prefetched


class Source:
    """Remembers what it was asked for, and when."""

    def __init__(self, fail_at=None):
        self.asked, self.acknowledged, self.fail_at = [], [], fail_at
        self.fetched = threading.Semaphore(0)

    def next(self, step, learner_version):
        if step == self.fail_at:
            raise RunError("waited 1 s for 4 rollout groups")
        self.asked.append((step, learner_version))
        self.fetched.release()
        return f"batch {step}", {"staleness": float(learner_version)}

    def acknowledge(self, step):
        self.acknowledged.append(step)

    def snapshot(self):
        return {"asked": len(self.asked)}


def prefetched(source, steps, publish_every=2):
    def next_version(step, version):
        return version + ((step + 1) % publish_every == 0)

    return Prefetched(source, steps=steps, next_version=next_version)


def test_steps_come_in_order_at_the_version_they_are_trained_at():
    source = Source()
    ahead = prefetched(source, steps=5)
    version = 0
    for step in range(5):
        assert ahead.next(step, version) == (f"batch {step}", {"staleness": float(version)})
        version += (step + 1) % 2 == 0
    ahead._thread.shutdown(wait=True)
    assert source.asked == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]


def test_the_next_step_is_fetched_while_one_is_trained_on():
    source = Source()
    ahead = prefetched(source, steps=5)
    ahead.next(0, 0)
    for _ in range(2):
        assert source.fetched.acquire(timeout=10)
    assert source.asked == [(0, 0), (1, 0)]
    assert ahead.snapshot() == {"asked": 2}
    ahead.acknowledge(0)
    assert source.acknowledged == [0]


def test_a_failure_comes_out_where_its_batch_would():
    ahead = prefetched(Source(fail_at=1), steps=5)
    ahead.next(0, 0)
    with pytest.raises(RunError, match="waited 1 s"):
        ahead.next(1, 0)


def test_a_batch_fetched_for_another_version_is_never_handed_out():
    ahead = prefetched(Source(), steps=5)
    ahead.next(0, 0)
    with pytest.raises(
        RuntimeError, match=r"step 1 at weight version 7 was asked for, but \(1, 0\) was fetched"
    ):
        ahead.next(1, 7)
