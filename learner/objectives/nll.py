"""Supervised NLL of the logged item: the control, and the anchor of every mixture.

    NLL(x, y*) = - sum over the L tokens of y* of log pi(token | history, tokens before)

A sum over tokens, so it is the negative log-likelihood of the item; the loss is its mean over prompts. Always
under the plain policy (whole vocabulary, temperature 1), however the rollouts were drawn: what is anchored is
what free decoding uses.

Definition: docs/algorithms.md, NLL.
"""

import torch

from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.objectives.terms.base import BranchInputs, Objective, Terms, nll_per_prompt
from sluice.learner.reduction import mean_of
from sluice.learner.scoring.shared_prefix import BranchScores


class NllLoss(Objective):
    """NLL alone; needs no rollouts and scores the ground truth only."""

    needs_groups = False

    def inputs(self, batch: LoggedBatch) -> BranchInputs:
        """The ground truth as the only branch, under the plain policy."""
        return BranchInputs(branches_BSL=batch.target_BL[:, None], allowed_BSLV=None, temperature=1.0)

    def __call__(
        self,
        batch: LoggedBatch,
        scores: BranchScores,
        start: BranchScores,
        reference_BSL: torch.Tensor | None,
    ) -> Terms:
        """Mean NLL over the prompts."""
        nll_B = nll_per_prompt(scores)
        return Terms(
            loss=nll_B.mean(),
            metrics={"loss": mean_of(nll_B), "nll": mean_of(nll_B), "entropy": mean_of(scores.entropy_BSL)},
        )
