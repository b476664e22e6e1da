"""Off-policy estimates: what a policy would have got, from a log that another policy made.

n logged impressions; each has the action a that was shown, its propensity mu and its reward r. The target
policy shows actions by pi, and q is a model of the reward that was fitted on other users. w = pi(a) / mu.

    IPS     mean of w r                                    Horvitz and Thompson (1952)
    SNIPS   sum of w r / sum of w                          Swaminathan and Joachims (2015)
    DR      mean of E_pi[q] + w (r - q(a))                 Dudik, Langford and Li (2011), arXiv 1103.4601

The values are those of the open bandit pipeline (obp). Its intervals take impressions for independent, and
the weights of SNIPS for fixed; here a user's impressions go together, and the weights vary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from obp.ope import DoublyRobust, InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting
from scipy.stats import norm

from sluice.learner.ranking_metrics import effective_size

KINDS = IPS, SNIPS, DR = "IPS", "SNIPS", "DR"


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Logged impressions beside what a target policy would show, among A actions of each."""

    users: np.ndarray  # int [n], whose impression it is
    action: np.ndarray  # int [n], which of the A was shown
    reward: np.ndarray  # float64 [n]
    propensity: np.ndarray  # float64 [n], the logger's chance of what was shown
    target: np.ndarray  # float64 [n, A], the target policy's chances
    predicted: np.ndarray  # float64 [n, A], the reward by the model

    @property
    def weights(self) -> np.ndarray:
        """float64 [n], w."""
        shown: np.ndarray = self.target[np.arange(len(self.action)), self.action] / self.propensity
        return shown

    @property
    def effective_sample(self) -> float:
        """Impressions of equal weight that would tell as much: (sum of w)^2 / sum of w^2, or 0."""
        weights = self.weights
        return effective_size(weights) if weights.any() else 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its standard error over users."""

    value: float
    error: float

    def interval(self, alpha: float) -> tuple[float, float]:
        """At level 1 - `alpha`."""
        width = float(norm.isf(alpha / 2)) * self.error
        return self.value - width, self.value + width


def estimate_value(rounds: Rounds) -> dict[str, Estimate]:
    """The target policy's mean reward by each estimator; empty where no impression has a weight."""
    if not rounds.effective_sample:
        return {}
    return {
        name: Estimate(value=value, error=_error(rounds.users, influence))
        for name, (value, influence) in _estimators(rounds).items()
    }


def estimate_difference(first: Rounds, second: Rounds) -> dict[str, Estimate]:
    """The second target's mean reward less the first's, of the same impressions; empty as either is."""
    if not first.effective_sample or not second.effective_sample:
        return {}
    ours, theirs = _estimators(first), _estimators(second)
    return {
        name: Estimate(
            value=theirs[name][0] - ours[name][0],
            error=_error(first.users, theirs[name][1] - ours[name][1]),
        )
        for name in ours
    }


def _estimators(rounds: Rounds) -> Mapping[str, tuple[float, np.ndarray]]:
    """By name: the value, and what each impression adds to its error, [n], with a mean of 0."""
    logged = {
        "reward": rounds.reward,
        "action": rounds.action,
        "pscore": rounds.propensity,
        "action_dist": rounds.target[..., None],
        "position": np.zeros(len(rounds.action), dtype=np.int64),
    }
    ips = InverseProbabilityWeighting()._estimate_round_rewards(**logged)
    snips = SelfNormalizedInverseProbabilityWeighting()._estimate_round_rewards(**logged)
    dr = DoublyRobust()._estimate_round_rewards(
        **logged, estimated_rewards_by_reg_model=rounds.predicted[..., None]
    )
    weights = rounds.weights
    return {
        IPS: (float(ips.mean()), ips - ips.mean()),
        # of a ratio of means, linearised: its weights sum to another number in another log
        SNIPS: (float(snips.mean()), snips - snips.mean() * weights / weights.mean()),
        DR: (float(dr.mean()), dr - dr.mean()),
    }


def _error(users: np.ndarray, influence: np.ndarray) -> float:
    """The standard error of a mean over impressions, where those of a user go together."""
    _, rows = np.unique(users, return_inverse=True)
    sums = np.bincount(rows, weights=influence)
    clusters = len(sums)
    return float(np.sqrt(clusters / max(1, clusters - 1) * (sums**2).sum()) / len(influence))
