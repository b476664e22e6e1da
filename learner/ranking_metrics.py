"""Ranking metrics with one target per user, and their uncertainty. Pure numpy and scipy.

A rank is 1-based; 0 means that the target is not in the list. HR@k, NDCG@k and MRR as usual for one relevant
item: HR@k = 1[rank <= k], NDCG@k = 1[rank <= k] / log2(rank + 1), MRR = 1 / rank within the list, else 0.

Definition: docs/algorithms.md, Metrics.
"""

from collections.abc import Mapping

import numpy as np
from scipy import stats

HIT_CUTS = (1, 5, 10)
NDCG_CUTS = (5, 10)


def per_user(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric for each user, float64 `[n]`, from ranks `[n]`."""
    listed = ranks > 0
    safe = np.where(listed, ranks, 1)
    values = {f"hr@{k}": (listed & (ranks <= k)).astype(np.float64) for k in HIT_CUTS}
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


def bootstrap_mean(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95% percentile interval (low, high) of the mean of values `[n]` over users.

    Pass paired differences for a paired comparison. Of fewer than two values, or of equal ones, both ends are
    the mean.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        mean = float(np.mean(values))
        return mean, mean
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=100,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def bootstrap_intervals(
    rows: Mapping[str, np.ndarray], metric: str, pairs: tuple[tuple[str, str], ...]
) -> dict[str, list[float]]:
    """Bootstrap intervals [low, high] of a metric's mean over users.

    Args:
        rows: name -> ranks `[n]` of the same n users.
        metric: a name of `per_user`.
        pairs: names whose paired difference "first-second" gets an interval too, where both are in `rows`.
    """
    values = {name: per_user(ranks)[metric] for name, ranks in rows.items()}
    result = {name: list(bootstrap_mean(value)) for name, value in values.items()}
    for first, second in pairs:
        if first in values and second in values:
            result[f"{first}-{second}"] = list(bootstrap_mean(values[first] - values[second]))
    return result
