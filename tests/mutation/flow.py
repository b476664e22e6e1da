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

SUPERVISION, SUSPECTS, BUDGET = "cluster/supervision.py", "actors/queue/suspects.py", "actors/queue/budget.py"
FAILURE, NODES = "cluster/failure.py", "cluster/nodes.py"
IN_SUPERVISION, IN_SUSPECTS = ("cluster/test_supervision.py",), ("actors/queue/test_suspects.py",)
IN_BUDGET, IN_FAILURE = ("actors/queue/test_budget.py",), ("cluster/test_failure.py",)
IN_NODES = ("cluster/test_nodes.py",)

FLOW_MUTANTS = (
    (SUPERVISION, "before.turns != pulse.turns:", "True:", IN_SUPERVISION),
    (SUPERVISION, "silent_s > bounds.hang_s,", "silent_s > bounds.slow_s,", IN_SUPERVISION),
    (SUPERVISION, "Health.SLOW if self._pulse.works", "Health.SLOW if not self._pulse.works", IN_SUPERVISION),
    (SUPERVISION, "        self._seen_s += gap_s\n", "", IN_SUPERVISION),
    (SUSPECTS, "entry.failures >= self._most - 1:", "entry.failures >= self._most:", IN_SUSPECTS),
    (SUSPECTS, "entry.state is not PromptState.LEASED:", "False:", IN_SUSPECTS),
    (SUSPECTS, "bool(self._ids) and any(", "False and any(", IN_SUSPECTS),
    (BUDGET, "if count > most * ended:", "if count >= most * ended:", IN_BUDGET),
    (BUDGET, "            self._seen.clear()\n", "            pass\n", IN_BUDGET),
    (FAILURE, "2.0 ** (restarts - 1)", "2.0 ** restarts", IN_FAILURE),
    (FAILURE, "former is not None and describe(error) == describe(former)", "former is not None", IN_FAILURE),
    (NODES, "self._since_s = None\n            return True", "return True", IN_NODES),
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
