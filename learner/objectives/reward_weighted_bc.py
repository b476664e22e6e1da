"""Reward-weighted behaviour cloning: the supervised loss, with more weight on what turned out well.

    L = sum over prompts of w NLL(x, y*) / sum over prompts of w,    w = max(r(x, y*), 0)

r is the logged reward of the logged item (rating, dwell); no importance weights.
Definition: docs/algorithms.md, Reward-weighted behaviour cloning.

- The mean is over the sum of the weights, so that the loss and the learning rate that suits it do not depend
  on the unit of the reward. [ours]
- A negative reward weighs 0: a negative weight on an NLL has no minimum. [ours]
- A row without a reward weighs `missing_weight`, and 1 - `rewarded_share` tells how many there are. [ours]

On a bandit its optimum is pi(y | x) proportional to p(y | x) E[w | x, y], with p the logging policy.
"""

import torch

from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.objectives.terms.base import (
    BranchInputs,
    Objective,
    ObjectiveInput,
    Terms,
    nll_per_prompt,
    target_alone,
)
from sluice.learner.objectives.terms.logged import logged_rewards, mean_over, weighted_mean_of
from sluice.learner.reduction import mean_of


class RewardWeightedBcLoss(Objective):
    """w * NLL; needs no rollouts and scores the ground truth only."""

    needs_groups = False

    def __init__(self, missing_weight: float) -> None:
        """Weigh rows without a logged reward with `missing_weight`."""
        self.missing_weight = missing_weight

    def select_branches(self, batch: LoggedBatch) -> BranchInputs:
        """The ground truth alone."""
        return target_alone(batch)

    def weights(self, batch: LoggedBatch) -> torch.Tensor:
        """The weights `[B]`, float64."""
        rewards_B = logged_rewards(batch)
        return torch.where(torch.isnan(rewards_B), self.missing_weight, rewards_B.clamp(min=0))

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The sum of the weights."""
        return self.weights(batch).sum()

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The weighted mean NLL over the prompts."""
        batch, scores = inputs.batch, inputs.scores
        nll_B, weights_B = nll_per_prompt(scores), self.weights(batch)
        rewards_B = logged_rewards(batch)
        return Terms(
            loss=mean_over(weights_B.to(nll_B.dtype) * nll_B, self.normaliser(batch)),
            metrics={
                "loss": weighted_mean_of(nll_B, weights_B),
                "nll": mean_of(nll_B),
                "weight": mean_of(weights_B),
                "rewarded_share": mean_of(~torch.isnan(rewards_B)),
                "negative_share": mean_of(rewards_B < 0),
                "entropy": mean_of(scores.entropy_BSL),
            },
        )
