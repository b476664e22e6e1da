"""How many groups a run may lose before it ends: a share of the last ones that ended, by what became of
them.
"""

from collections import deque
from collections.abc import Mapping

from sluice.actors.settings import QueueSettings

ENDS = ("trained", "stale", "invalid")
_REMEDY = {
    "invalid": "Mend the ranker or the data, try them with `sluice config "
    "check --deep`, or raise queue.max_invalid_share",
    "stale": "The rollouts are far behind or ahead of the learner: raise queue.max_staleness or "
    "weights.publish_every, or lower queue.max_groups; or raise queue.max_stale_share",
}


class LossBudget:
    """The budget over a window. Counts go in whenever somebody looks, and only ever grow in between."""

    def __init__(self, settings: QueueSettings) -> None:
        self._window = settings.share_window
        self._most = {"invalid": settings.max_invalid_share, "stale": settings.max_stale_share}
        self._seen: deque[dict[str, int]] = deque()

    def see(self, counts: Mapping[str, int]) -> None:
        """The run's counts of groups so far, by their end. Lower ones than before come of a learner that went
        back to a checkpoint: the window begins anew.
        """
        now = {name: counts[name] for name in ENDS}
        if self._seen and any(now[name] < self._seen[-1][name] for name in ENDS):
            self._seen.clear()
        self._seen.append(now)
        while len(self._seen) > 2 and self._ended_since(self._seen[1]) >= self._window:
            self._seen.popleft()

    def over(self, last_error: str = "") -> str | None:
        """What is over its budget, in one message; None while nothing is.

        >>> budget = LossBudget(QueueSettings(share_window=10, max_invalid_share=0.5))
        >>> budget.see({"trained": 0, "stale": 0, "invalid": 0})
        >>> budget.see({"trained": 4, "stale": 0, "invalid": 6})
        >>> budget.over("rollout-0: no scores").startswith("6 of the last 10 groups were invalid, more than")
        True
        """
        if not self._seen or (ended := self._ended_since(self._seen[0])) < self._window:
            return None
        for name, most in self._most.items():
            count = self._seen[-1][name] - self._seen[0][name]
            if count > most * ended:
                return (
                    f"{count} of the last {ended} groups were {name}, more than the share "
                    f"queue.max_{name}_share = {most:g} allows. Last error of the rollout side: "
                    f"{last_error or 'none'}. {_REMEDY[name]}"
                )
        return None

    def _ended_since(self, then: Mapping[str, int]) -> int:
        return sum(self._seen[-1][name] - then[name] for name in ENDS)
