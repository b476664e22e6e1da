"""Advantage-weighted supervised fine-tuning (A-SFT, Netflix 2025): learn most from what beat the expectation.

    L = sum over prompts of w NLL(x, y*) / normaliser
    w = min(exp(A / beta), max_weight),    A = r(x, y*) - V(x)

[formula: ours; the source prints it as an image] r is the logged reward, no importance weights; w carries no
gradient. beta bounds how far the policy leaves the logs: on a bandit the optimum is pi(y | x) proportional to
p(y | x) exp(r / beta), with p the logging policy, and as beta grows w -> 1, which is plain NLL.
Definition: docs/algorithms.md, A-SFT.

- V(x) is the mean reward that the ranker predicts for the policy's valid candidates, repetitions counted as
  drawn; the normaliser is the sum of the weights (they are normalised per batch). Only the ground truth is
  scored.
- Or V(x) is a value head: its value of the prompt at the batch start, fitted by the mean of (V - r)^2. Its
  weights are unknown before the forward, and a mean over their sum would need all micro-batches first; so the
  normaliser is what the weights add up to at A = 0, the rows with a reward. [ours]
- A row whose advantage is unknown (no logged reward, no valid candidate) weighs `missing_weight`. [ours]
"""

import math

import torch

from sluice.catalog.errors import RankerError
from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.objectives.settings.logged import AdvantageSftObjective, ValueHeadBaseline
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


@torch.no_grad()
def advantage_weights(
    advantages_B: torch.Tensor, beta: float, max_weight: float, missing_weight: float
) -> torch.Tensor:
    """min(exp(A / beta), max_weight) `[B]`, `missing_weight` where the advantage is NaN."""
    exponent_B = (advantages_B / beta).clamp(max=math.log(max_weight))
    return torch.where(torch.isnan(advantages_B), missing_weight, exponent_B.exp())


def candidate_baseline(batch: LoggedBatch) -> torch.Tensor:
    """V `[B]` in float64: the mean predicted reward of the valid candidates, NaN where there is none.

    Raises:
        RankerError: the ranker predicts no reward.
    """
    assert isinstance(batch, GroupBatch), "this baseline needs rollouts"
    if batch.candidate_values_BK is None:
        raise RankerError(
            "a_sft with baseline candidates needs a ranker that predicts the logged reward of the "
            "candidates, and this one does not: use one that does, or set objective.baseline.type to "
            "value_head"
        )
    return batch.candidate_values_BK.double().masked_fill(~batch.valid_BK, torch.nan).nanmean(dim=-1)


class AdvantageSftLoss(Objective):
    """exp(A / beta) * NLL, and the value head's squared error where there is one."""

    def __init__(self, settings: AdvantageSftObjective) -> None:
        """Weigh and take the baseline as `settings` say."""
        self.settings = settings
        self.needs_values = settings.baseline.type == "value_head"
        self.needs_groups = not self.needs_values

    def select_branches(self, batch: LoggedBatch) -> BranchInputs:
        """The ground truth alone."""
        return target_alone(batch)

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The sum of the weights; with a value head their sum at A = 0."""
        rewards_B = logged_rewards(batch)
        return self._weights(
            rewards_B * 0 if self.needs_values else rewards_B - candidate_baseline(batch)
        ).sum()

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The weighted NLL, plus the value loss."""
        batch, scores = inputs.batch, inputs.scores
        rewards_B, normaliser = logged_rewards(batch), self.normaliser(batch)
        if self.needs_values:
            assert inputs.start.values_BSL is not None
            baseline_B = inputs.start.values_BSL[:, 0, 0].double()
        else:
            baseline_B = candidate_baseline(batch)
        advantages_B = rewards_B - baseline_B
        known_B, weights_B = ~torch.isnan(advantages_B), self._weights(advantages_B)
        nll_B = nll_per_prompt(scores)
        loss_B = weights_B.to(nll_B.dtype) * nll_B
        metrics = {
            "nll": mean_of(nll_B),
            "nll_weighted": weighted_mean_of(nll_B, weights_B),
            "weight": mean_of(weights_B),
            "weight_clipped": mean_of(
                advantages_B / self.settings.beta > math.log(self.settings.max_weight), known_B
            ),
            "advantage": mean_of(advantages_B, known_B),
            "rewarded_share": mean_of(known_B),
            "entropy": mean_of(scores.entropy_BSL),
        }
        if isinstance(self.settings.baseline, ValueHeadBaseline):
            assert scores.values_BSL is not None
            error_B = torch.where(known_B, scores.values_BSL[:, 0, 0] - rewards_B.to(nll_B.dtype), 0.0) ** 2
            loss_B = loss_B + self.settings.baseline.weight * error_B
            metrics["value_error"] = mean_of(error_B, known_B)
        loss = mean_over(loss_B, normaliser)
        metrics["loss"] = torch.stack([loss_B.detach().double().sum(), normaliser])
        return Terms(loss=loss, metrics=metrics)

    def _weights(self, advantages_B: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        return advantage_weights(advantages_B, settings.beta, settings.max_weight, settings.missing_weight)
