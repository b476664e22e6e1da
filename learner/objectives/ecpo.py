"""ECPO, early-clipped GRPO (OneRec, arXiv 2506.13695): a bound on the ratio where the advantage is negative.

    surrogate_it = min(rho A, clip(rho, 1 - low, 1 + high) A),    rho = pi / pi_old'
    pi_old' = max( sg(pi) / (1 + high + delta), pi_old )

GRPO's minimum leaves rho A without a bound where A < 0 and rho is large, and one such token can dominate a
step. Here rho never exceeds 1 + high + delta, delta 0.1; the gradient there is (1 + high + delta) A grad log
pi instead of rho A grad log pi. Where A >= 0 the clip at 1 + high cuts in before, so nothing changes. The
source has one epsilon for low and high, and no KL.

Definition: docs/algorithms.md, ECPO.
"""

import math

import torch

from sluice.learner.objectives.grpo import clipped_surrogate, clipped_tokens
from sluice.learner.objectives.settings.objective import EcpoSettings
from sluice.learner.objectives.terms.base import ObjectiveInput
from sluice.learner.objectives.terms.group_term import (
    GroupLoss,
    GroupTerm,
    group_metrics,
    group_of,
    off_policy_term,
)
from sluice.learner.objectives.terms.ratio import ratio_of
from sluice.learner.reduction import mean_of


@torch.no_grad()
def early_clipped_old(
    log_probs_BKL: torch.Tensor, old_BKL: torch.Tensor, largest_ratio: float
) -> torch.Tensor:
    """log pi_old' `[B, K, L]`: the old policy, raised where the ratio to it would exceed `largest_ratio`."""
    return torch.maximum(log_probs_BKL - math.log(largest_ratio), old_BKL)


class EcpoLoss(GroupLoss):
    """ECPO alone."""

    settings: EcpoSettings

    def term(self, inputs: ObjectiveInput) -> GroupTerm:
        """The term of each prompt."""
        group = group_of(inputs, self.settings)
        low, high = self.settings.clip_low, self.settings.clip_high
        old_BKL = group.old(self.settings)
        raised_BKL = early_clipped_old(
            group.log_probs_BKL, old_BKL, 1 + high + self.settings.early_clip_margin
        )
        log_ratio_BKL = group.log_probs_BKL - raised_BKL
        metrics = {
            "ratio_mean": mean_of(ratio_of(log_ratio_BKL)),
            "clip_share": mean_of(clipped_tokens(log_ratio_BKL, group.advantages_BK, low, high)),
            "early_clip_share": mean_of((raised_BKL > old_BKL) & (group.advantages_BK[..., None] < 0)),
            **group_metrics(inputs, group),
        }
        surrogate_BKL = clipped_surrogate(log_ratio_BKL, group.advantages_BK, low, high)
        return off_policy_term(inputs, group, surrogate_BKL, self.settings, metrics)
