"""A mean with its interval over users, as every figure of the audit is given."""

from dataclasses import dataclass

import numpy as np

from sluice.learner.ranking_metrics import bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over prompts, with the 95% interval over users."""

    value: float  # NaN: of no prompt
    low: float
    high: float
    prompts: int
    users: int

    @classmethod
    def of(cls, values: np.ndarray, users: np.ndarray) -> "Estimate":
        """The mean of those of the values `[n]` that are not NaN; whole users `[n]` are drawn.

        >>> Estimate.of(np.array([1.0, 0.0, np.nan]), np.array([0, 1, 2])).prompts
        2
        """
        known = ~np.isnan(np.asarray(values, dtype=np.float64))
        values, users = np.asarray(values, dtype=np.float64)[known], users[known]
        if len(values) == 0:
            nothing = float("nan")
            return cls(value=nothing, low=nothing, high=nothing, prompts=0, users=0)
        low, high = bootstrap_mean(values, users)
        return cls(
            value=float(values.mean()),
            low=low,
            high=high,
            prompts=len(values),
            users=len(np.unique(users)),
        )

    def signed(self) -> str:
        """As `+0.0180 [+0.0040, +0.0330]`."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def plain(self) -> str:
        """As `0.612 [0.580, 0.640]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def percent(self) -> str:
        """As `24.5% [20.1%, 29.0%]`."""
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"
