"""Direct preference optimisation (DPO, arXiv 2305.18290) on pairs of items.

    L = mean over pairs of -log sigmoid(beta h),    h = (l - l_ref)(chosen) - (l - l_ref)(rejected)

At the reference the loss is log 2. Where one item is always preferred h grows without bound; with the logged
item over samples of the reference the optimum is pi proportional to pi_ref (p / pi_ref)^(1 / beta), with p
the logging policy.

Definition: docs/algorithms.md, DPO.
"""

import torch
from torch.nn.functional import logsigmoid

from sluice.learner.objectives.settings.preference import DpoObjective
from sluice.learner.objectives.terms.pairwise import PairwiseLoss


class DpoLoss(PairwiseLoss):
    """-log sigmoid(beta h)."""

    def __init__(self, settings: DpoObjective) -> None:
        """Train by `settings`."""
        super().__init__(settings.pairs, settings.nll_weight)
        self.beta = settings.beta

    def of_margin(self, margin_BP: torch.Tensor) -> torch.Tensor:
        """-log sigmoid(beta h)."""
        return -logsigmoid(self.beta * margin_BP)
