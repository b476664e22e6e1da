"""What the objectives on logged rewards share: the rewards, and means whose weights differ by row.

A weighted mean is `sum w v / sum w` over the whole step, whatever micro-batch or worker holds a row: its
denominator is the `Objective.normaliser`.
"""

import torch

from sluice.catalog.errors import DataError
from sluice.learner.batches.batch import LoggedBatch


def logged_rewards(batch: LoggedBatch) -> torch.Tensor:
    """The logged rewards `[B]` in float64, NaN where a row has none.

    Raises:
        DataError: the batch carries no rewards at all.
    """
    if batch.logged_rewards_B is None:
        raise DataError(
            "the objective learns from logged rewards, but the data set has none: name the column of the log "
            "that holds them (rating or dwell_seconds), or choose an objective that does not need them"
        )
    return batch.logged_rewards_B.double()


def mean_over(values: torch.Tensor, normaliser: torch.Tensor) -> torch.Tensor:
    """The scalar `sum(values) / normaliser`; 0, still with a graph, where both are 0."""
    return values.sum() / torch.where(normaliser > 0, normaliser, 1.0).to(values.dtype)


def weighted_mean_of(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The metric `[2]`, (sum, weight), that reports the weighted mean of `values`; see `Terms.metrics`."""
    weights = weights.double()
    return torch.stack([(weights * values.detach().double()).sum(), weights.sum()])
