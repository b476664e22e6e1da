"""GBPO, gradient-bounded policy optimisation (OneRec-V2, arXiv 2508.20900): no clip, yet no gradient that
explodes.

    surrogate_it = pi / pi_old' * A
    pi_old' = max(pi_old, sg(pi))      where A >= 0
              max(pi_old, 1 - sg(pi))  where A < 0

Every token keeps a gradient, and its size is bounded: A >= 0 by A grad log pi (the ratio is at most 1), A < 0
by |A| pi / (1 - pi) grad log pi, the size that binary cross-entropy gives a negative. The source applies it
to items that were exposed and to their logged feedback; here it is given the candidates of a group and their
rewards. [ours] pi is the probability of a token.

Definition: docs/algorithms.md, GBPO.
"""

import torch

from sluice.learner.objectives.settings.objective import GbpoSettings
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
def bounded_old(
    log_probs_BKL: torch.Tensor, old_BKL: torch.Tensor, advantages_BK: torch.Tensor
) -> torch.Tensor:
    """log pi_old' `[B, K, L]`."""
    # log(1 - p); rounding may put log p above 0, and p = 1 gives -inf, which the maximum passes over
    complement_BKL = (-torch.expm1(log_probs_BKL.clamp(max=0.0))).log()
    bound_BKL = torch.where(advantages_BK[..., None] >= 0, log_probs_BKL, complement_BKL)
    return torch.maximum(old_BKL, bound_BKL)


class GbpoLoss(GroupLoss):
    """GBPO alone."""

    settings: GbpoSettings

    def term(self, inputs: ObjectiveInput) -> GroupTerm:
        """The term of each prompt."""
        group = group_of(inputs, self.settings)
        old_BKL = group.old(self.settings)
        raised_BKL = bounded_old(group.log_probs_BKL, old_BKL, group.advantages_BK)
        ratio_BKL = ratio_of(group.log_probs_BKL - raised_BKL)
        metrics = {
            "ratio_mean": mean_of(ratio_BKL),
            "bound_share": mean_of(raised_BKL > old_BKL),
            **group_metrics(inputs, group),
        }
        surrogate_BKL = ratio_BKL * group.advantages_BK[..., None]
        return off_policy_term(inputs, group, surrogate_BKL, self.settings, metrics)
