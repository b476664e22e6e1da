"""Supervised NLL of the logged item: the control, and the anchor of every mixture.

    NLL(x, y*) = - sum over the L tokens of y* of log pi(token | history, tokens before)

A sum over tokens, so it is the negative log-likelihood of the item; the loss is its mean over prompts. Always
under the plain policy (whole vocabulary, temperature 1), however the rollouts were drawn: what is anchored is
what free decoding uses.

Definition: docs/algorithms.md, NLL.
"""

from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.objectives.terms.base import (
    BranchInputs,
    Objective,
    ObjectiveInput,
    Terms,
    nll_per_prompt,
    target_alone,
)
from sluice.learner.reduction import mean_of


class NllLoss(Objective):
    """NLL alone; needs no rollouts and scores the ground truth only."""

    needs_groups = False

    def select_branches(self, batch: LoggedBatch) -> BranchInputs:
        """The ground truth alone."""
        return target_alone(batch)

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """Mean NLL over the prompts."""
        nll_B = nll_per_prompt(inputs.scores)
        return Terms(
            loss=nll_B.mean(),
            metrics={
                "loss": mean_of(nll_B),
                "nll": mean_of(nll_B),
                "entropy": mean_of(inputs.scores.entropy_BSL),
            },
        )
