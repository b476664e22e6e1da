"""Probability ratios that stay finite: a log-ratio is bounded before it is exponentiated. [ours]

Engine and learner may disagree about a token by any number of nats: a stale group, another precision, a token
that one side finds next to impossible. exp of 90 nats is infinite in float32, and then 0 * inf in a clipped
surrogate, or in the gradient of a group that does not count, is NaN. Within the bound nothing changes. Beyond
it a ratio is a constant, so that the token has its surrogate and no gradient.

Definition: docs/algorithms.md, Edges.
"""

import torch

LARGEST_LOG_RATIO = 20.0  # nats; exp of it is 5e8, far beyond any clip


def ratio_of(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp of log-ratios in nats, each bounded to +-`LARGEST_LOG_RATIO`.

    >>> ratio_of(torch.tensor([0.0, 95.0])).tolist() == [1.0, ratio_of(torch.tensor(20.0)).item()]
    True
    """
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
