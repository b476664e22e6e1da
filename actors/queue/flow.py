"""Flow control: how many groups should be on their way to the learner, from the rates that are measured.

By Little's law, groups that take W seconds from lease to queue and are trained on at r groups per second keep
r x W of them with the rollout actors. Fewer, and the learner starves; more, and they wait in the queue and
grow stale. So

    limit = HEADROOM x r x W + the groups of one step, ready when the learner asks + one batch of leases,
    which is granted whole

and, since a group that has `ahead` others before it is `ahead / (publish_every x groups of a step)` weight
versions old when its turn comes, never more than `max_staleness x publish_every` steps' worth.

A learner that starves makes r the rate of the rollout actors, whose r x W is all that they hold already: then
the limit stands above that, and it is their own `leases_ahead` that ends them.
"""

import math
from collections import deque
from statistics import median

HEADROOM = 1.25  # for rates that vary
_STEPS = 8  # that the learner's rate is the median of, so that a pause for a validation counts for nothing
_SHARE = 0.05  # of a new latency in the running mean


class FlowControl:
    """The measurements, and the limit that follows. The clock is passed in."""

    def __init__(self, *, max_groups: int, max_staleness: int, publish_every: int) -> None:
        """`max_groups` is the bound that holds in any case, and the limit until there are measurements."""
        self._max_groups, self._max_staleness, self._publish_every = max_groups, max_staleness, publish_every
        self._latency_s: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._step, self._step_groups, self._step_began_s = -1, 0, 0.0
        self._group_seconds: deque[float] = deque(maxlen=_STEPS)

    def queued(self, latency_s: float) -> None:
        """A group came `latency_s` after it was leased."""
        before = latency_s if self._latency_s is None else self._latency_s
        self._latency_s = before + _SHARE * (latency_s - before)

    def trained(self, step: int, groups: int, now_s: float) -> None:
        """A worker has trained on its `groups` of `step`."""
        if step == self._step:
            self._step_groups += groups
            return
        if step < self._step:  # the learner went back to a checkpoint
            self._forget()
        if self._step >= 0:
            self._group_seconds.append((now_s - self._step_began_s) / self._step_groups)
        self._step, self._step_groups, self._step_began_s = step, groups, now_s

    def limit(self, lease: int) -> int:
        """Most groups that may be leased or queued, for a `lease` of so many prompts to be granted."""
        if self._latency_s is None or len(self._group_seconds) < _STEPS or not self._step_groups:
            return self._max_groups
        needed = math.ceil(HEADROOM * self._latency_s / max(1e-9, median(self._group_seconds)))
        enough = needed + self._step_groups + lease
        fresh = max(1, self._max_staleness) * self._publish_every * self._step_groups
        return min(self._max_groups, max(min(enough, fresh), self._step_groups + lease))


def grant_batch(count: int, *, free: int, leased: int, queued: int, wanted: int) -> int:
    """How many of `count` prompts are lent where `free` more may be under way.

    A cut batch has fewer prompts to take distractors from, so it is granted only where waiting cannot help:
    nothing is `leased`, and the learner lacks some of the `wanted` groups (or nothing is `queued` at all).

    >>> grant_batch(4, free=2, leased=1, queued=0, wanted=8)
    0
    >>> grant_batch(4, free=2, leased=0, queued=6, wanted=8)
    2
    """
    if free >= count:
        return count
    if leased or (queued and queued >= wanted):
        return 0
    return free if queued else max(1, free)
