"""The difference of two arms while users come in: an interval that is valid however often it is looked at.

The unit is the user, who is in one arm. With t users in the test, n1 and n0 of them in the arms:

    difference = mean1 - mean0,   error = sqrt(var1 / n1 + var0 / n0)
    interval   = difference +- error x margin(t)
    margin(t)  = sqrt(2 (t rho^2 + 1) / (t rho^2) x log(sqrt(t rho^2 + 1) / alpha))

This is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2021), arXiv
2103.06476, its mixture boundary, of the influence function of a difference in means. At a fixed sample size
the margin is the normal quantile, 1.96. rho says when the sequence is tightest, and changes nothing of its
validity.

Looks: P of them. Leading axes, written [...], are tests of their own.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import lambertw
from scipy.stats import norm


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What a test showed at each look."""

    users: np.ndarray  # int64 [P], in both arms together
    difference: np.ndarray  # float64 [..., P], second arm less first
    error: np.ndarray  # float64 [..., P], standard error
    removed: np.ndarray  # float64 [..., P], share of the variance that the covariate takes away

    def interval(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """The confidence sequence at level 1 - `alpha`, [..., P] each; tightest at the last look."""
        width = self.error * sequence_margin(self.users, best_rho2(int(self.users[-1]), alpha), alpha)
        return self.difference - width, self.difference + width

    def fixed_interval(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """The interval of a test with one look, [..., P] each; at several looks it is wrong too often."""
        width = self.error * norm.isf(alpha / 2)
        return self.difference - width, self.difference + width


def sequence_margin(times: np.ndarray, rho2: float, alpha: float) -> np.ndarray:
    """Half the width in standard errors at `times`, in users; see the module."""
    grown = times * rho2 + 1
    margin: np.ndarray = np.sqrt(2 * grown / (times * rho2) * np.log(np.sqrt(grown) / alpha))
    return margin


def best_rho2(time: int, alpha: float) -> float:
    """The rho^2 whose margin is smallest at `time`: x = t rho^2 solves x = log(x + 1) + 2 log(1 / alpha)."""
    return float(-lambertw(-(alpha**2) / np.e, -1).real - 1) / time


def look_at(
    values: np.ndarray, second: np.ndarray, looks: np.ndarray, covariate: np.ndarray | None = None
) -> Looks:
    """The difference after the first `looks` [P] of the users.

    With a covariate the values are those of CUPED (Deng, Xu, Kohavi and Walker, WSDM 2013): y - theta x,
    where theta = cov(x, y) / var(x) within the arms, of the users so far. A covariate is known before the
    test, so that it cannot differ by the arm.

    Args:
        values: float [..., n], of the users in the order in which they come.
        second: bool [..., n], who is in the second arm.
        looks: int [P], ascending; each with two users of either arm.
        covariate: float [..., n].
    """
    values, second = np.broadcast_arrays(values, second)
    arms = [_moments(values, covariate, chosen, looks) for chosen in (second, ~second)]
    spread_x, spread_xy = (sum(arm[name] for arm in arms) for name in ("xx", "xy"))
    theta = np.divide(spread_xy, spread_x, out=np.zeros_like(spread_xy), where=spread_x > 0)
    (mean1, variance1, plain1), (mean0, variance0, plain0) = (_adjusted(arm, theta) for arm in arms)
    return Looks(
        users=looks,
        difference=mean1 - mean0,
        error=np.sqrt(variance1 + variance0),
        removed=1 - (variance1 + variance0) / np.maximum(plain1 + plain0, np.finfo(float).tiny),
    )


def _adjusted(arm: dict[str, np.ndarray], theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean of y - theta x in an arm, the variance of that mean, and that of the mean of y."""
    scale = arm["n"] * (arm["n"] - 1)
    spread = arm["yy"] - 2 * theta * arm["xy"] + theta**2 * arm["xx"]
    # a covariate that explains all leaves no spread, but for rounding
    return arm["y"] - theta * arm["x"], np.maximum(spread, 0) / scale, arm["yy"] / scale


def _moments(
    y: np.ndarray, x: np.ndarray | None, chosen: np.ndarray, looks: np.ndarray
) -> dict[str, np.ndarray]:
    """Count, means, and sums of centred squares and products of the `chosen` at each look, [..., P] each."""
    x = np.zeros_like(y, dtype=np.float64) if x is None else np.broadcast_to(x, y.shape)
    x, y = x - x.mean(axis=-1, keepdims=True), y.astype(np.float64)
    y = y - y.mean(axis=-1, keepdims=True)  # sums of squares lose no digits so
    n, sum_x, sum_y, xx, yy, xy = (
        np.cumsum(np.where(chosen, part, 0.0), axis=-1)[..., looks - 1]
        for part in (np.ones_like(y), x, y, x * x, y * y, x * y)
    )
    return {
        "n": n,
        "x": sum_x / n,
        "y": sum_y / n,
        "xx": xx - sum_x**2 / n,
        "yy": yy - sum_y**2 / n,
        "xy": xy - sum_x * sum_y / n,
    }
