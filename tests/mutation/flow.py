"""Mutants of what decides how much is under way, what is fetched ahead, where time is booked, and
which gaps a history has.
"""

FLOW, PREFETCH, CLOCK = "actors/queue/flow.py", "learner/batches/prefetch.py", "learner/activity_clock.py"
GAPS = "catalog/gaps.py"
IN_GAPS, IN_GROUPS, IN_SOURCES = (
    ("catalog/test_gaps.py",),
    ("actors/rollout/test_groups.py",),
    ("learner/batches/test_sources.py",),
)
IN_FLOW, IN_PREFETCH, IN_CLOCK = (
    ("actors/queue/test_flow.py",),
    ("learner/batches/test_prefetch.py",),
    ("learner/test_activity_clock.py",),
)

FLOW_MUTANTS = (
    (FLOW, "HEADROOM = 1.25", "HEADROOM = 0.5", IN_FLOW),
    (FLOW, "before + _SHARE * (latency_s - before)", "latency_s", IN_FLOW),
    (FLOW, "median(self._group_seconds)", "max(self._group_seconds)", IN_FLOW),
    (FLOW, "            self._step_groups += groups\n", "            pass\n", IN_FLOW),
    (FLOW, "            self._forget()\n", "            pass\n", IN_FLOW),
    (FLOW, "needed + self._step_groups + lease", "needed", IN_FLOW),
    (FLOW, "max(1, self._max_staleness) * self._publish_every", "max(1, self._max_staleness)", IN_FLOW),
    (FLOW, "max(1, self._max_staleness)", "self._max_staleness", IN_FLOW),
    (FLOW, "min(enough, fresh), self._step_groups + lease)", "min(enough, fresh), 0)", IN_FLOW),
    (FLOW, "min(self._max_groups, max(", "max(0, max(", IN_FLOW),
    (FLOW, "len(self._group_seconds) < _STEPS", "len(self._group_seconds) < 1", IN_FLOW),
    (PREFETCH, "if step + 1 < self._steps:", "if True:", IN_PREFETCH),
    (PREFETCH, "self._next_version(step, learner_version)", "learner_version", IN_PREFETCH),
    (PREFETCH, "ahead is not None and ahead[:2] != (step, learner_version)", "False", IN_PREFETCH),
    (CLOCK, "            self._switch(before)\n", "            pass\n", IN_CLOCK),
    (CLOCK, "        self._switch(self._activity)\n        return", "        return", IN_CLOCK),
    (CLOCK, "= self._activity, activity, now_s", "= self._activity, activity, self._since_s", IN_CLOCK),
    (CLOCK, "if is_wait(activity))", ")", IN_CLOCK),
    (GAPS, "generator.random() * most", "most", IN_GAPS),
    (GAPS, "[self.seed, number]", "[self.seed]", IN_GAPS),
    (GAPS, "[self.seed, number]", "[number]", IN_GAPS),
    (GAPS, "least=1", "least=2", IN_GAPS),
    ("actors/rollout/groups.py", "[prompt.whole_history for", "[prompt.history for", IN_GROUPS),
    ("actors/rollout/groups.py", "gaps.cut(history, lease.lease_id)", "history", IN_GROUPS),
    ("learner/batches/sources.py", "range(step * size + self._rank,", "range(step * size,", IN_SOURCES),
    ("learner/batches/sources.py", "range(step * size + self._rank,", "range(self._rank,", IN_SOURCES),
)
