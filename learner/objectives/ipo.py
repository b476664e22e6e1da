"""Identity preference optimisation (IPO, arXiv 2310.12036) on pairs of items.

    L = mean over pairs of (h - 1 / (2 tau))^2,    h = (l - l_ref)(chosen) - (l - l_ref)(rejected)

Every pair is drawn to the same finite margin, so that certain preferences do not drive the policy away from
the reference without bound. With pairs of two independent samples of mu the optimum is pi proportional to
pi_ref exp(P(y preferred to a sample of mu) / tau).

Definition: docs/algorithms.md, IPO.
"""

import torch

from sluice.learner.objectives.settings.preference import IpoObjective
from sluice.learner.objectives.terms.pairwise import PairwiseLoss


class IpoLoss(PairwiseLoss):
    """(h - 1 / (2 tau))^2."""

    def __init__(self, settings: IpoObjective) -> None:
        """Train by `settings`."""
        super().__init__(settings.pairs, settings.nll_weight)
        self.tau = settings.tau

    def of_margin(self, margin_BP: torch.Tensor) -> torch.Tensor:
        """(h - 1 / (2 tau))^2."""
        return (margin_BP - 1 / (2 * self.tau)) ** 2
