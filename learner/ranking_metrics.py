"""Ranking metrics with one target per example, and their uncertainty. Pure numpy and scipy.

A rank is 1-based; 0 means that the target is not in the list. HR@k, NDCG@k and MRR as usual for one relevant
item: HR@k = 1[rank <= k], NDCG@k = 1[rank <= k] / log2(rank + 1), MRR = 1 / rank within the list, else 0.

Definition: docs/algorithms.md, Metrics.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

HIT_CUTS = (1, 5, 10, 50)
NDCG_CUTS = (5, 10)


def per_user(ranks: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
    """Each metric for each example, float64 `[n]`, from ranks `[n]`.

    `width` is the number of places of the lists: what lies beyond them nobody knows, so HR@k with k above it
    is left out. None: the lists hold the whole catalogue.
    """
    listed = ranks > 0
    safe = np.where(listed, ranks, 1)
    cuts = [k for k in HIT_CUTS if width is None or k <= width]
    values = {f"hr@{k}": (listed & (ranks <= k)).astype(np.float64) for k in cuts}
    values |= {f"ndcg@{k}": np.where(listed & (ranks <= k), 1 / np.log2(safe + 1), 0.0) for k in NDCG_CUTS}
    values["mrr"] = np.where(listed, 1 / safe, 0.0)
    return values


def rank_of(target: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """1-based place `[n]` of each target `[n]` in its list `[n, W]`, 0 where it is absent.

    >>> rank_of(np.array([7, 9]), np.array([[5, 7], [5, 7]])).tolist()
    [2, 0]
    """
    hit = lists == target[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)


def effective_size(weights: np.ndarray) -> float:
    """How many equally weighted rows would tell as much as those of these weights `[n]` (Kish 1965).

    >>> effective_size(np.array([2.0, 2.0, 0.0])), effective_size(np.array([3.0, 1.0]))
    (2.0, 1.6)
    """
    return float(weights.sum() ** 2 / np.square(weights).sum())


def bootstrap_mean(
    values: np.ndarray,
    users: np.ndarray,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of values `[n]`; whole users are drawn.

    The rows of a user are not independent. `users` `[n]` says whose each row is. Pass paired differences for
    a paired comparison. What is computed of a resample is its sum over its number of rows, a ratio over
    clusters (Cochran 1977, Sampling Techniques, 9A). Of fewer than two users, or of users with equal means,
    both ends are the mean.

    With `weights` `[n]`, at least 0 and not all 0, it is the weighted sum over the sum of the weights.

    >>> low, high = bootstrap_mean(np.array([0.0, 1.0, 1.0, 1.0]), np.array([0, 0, 1, 2]))
    >>> low < 0.75 < high
    True
    """
    if weights is not None:
        counted = weights > 0
        values, users, weights = values[counted] * weights[counted], users[counted], weights[counted]
    _, owner = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(owner, weights=values), np.bincount(owner, weights=weights)
    means = sums / counts
    if len(sums) < 2 or np.ptp(means) == 0:
        mean = float(sums.sum() / counts.sum())
        return mean, mean

    def mean_of_rows(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        means: np.ndarray = sums.sum(axis=axis) / counts.sum(axis=axis)
        return means

    interval = stats.bootstrap(
        (sums, counts),
        mean_of_rows,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=100,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def bootstrap_intervals(
    rows: Mapping[str, np.ndarray],
    users: np.ndarray,
    metric: str,
    pairs: Sequence[tuple[str, str]],
    weights: np.ndarray | None = None,
) -> dict[str, list[float]]:
    """Bootstrap intervals [low, high] of a metric's mean, whole users drawn.

    Args:
        rows: name -> ranks `[n]` of the same n examples.
        users: `[n]`, whose each example is.
        metric: a name of `per_user`.
        pairs: names whose paired difference "first-second" gets an interval too, where both are in `rows`.
        weights: `[n]`, what each example counts; None: all alike.
    """
    values = {name: per_user(ranks)[metric] for name, ranks in rows.items()}
    result = {name: list(bootstrap_mean(value, users, weights=weights)) for name, value in values.items()}
    for first, second in pairs:
        if first in values and second in values:
            change = values[first] - values[second]
            result[f"{first}-{second}"] = list(bootstrap_mean(change, users, weights=weights))
    return result
