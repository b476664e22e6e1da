"""The group-relative policy gradient (GRPO, arXiv 2402.03300) and its relatives, alone or as the term of a
mixture.

    surrogate_it = min(rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i),    rho = pi / pi_old

The sum over the group, the correction and the KL to the reference are those of
`sluice.learner.objectives.terms.group_term`; advantages (GRPO, Dr.GRPO, RLOO) those of
`sluice.learner.objectives.terms.advantages`. pi_old is the behaviour policy as the engine recorded it, or the
learner at the start of the batch.

The ratio is that of each token; of the whole candidate, rho_i = prod_t rho_it; or GSPO's (arXiv 2507.18071)
rho_i = (prod_t rho_it)^(1/L), whose clip bounds are as narrow as 3e-4 and 4e-4. At ratio 1 the gradient of
the first and third is (1/L) sum_t A grad log pi; that of the second is L times as long, the gradient of the
expected reward.

DAPO (arXiv 2503.14476): clip_high above clip_low, no KL, and groups whose rewards are all equal left out: the
mean is then over the other groups of the whole step, `normaliser`. Its dynamic sampling, which draws new
groups for those left out, is replaced by leaving them out. [ours]

Definition: docs/algorithms.md, GRPO.
"""

from typing import Literal

import torch

from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.objectives.terms.advantages import all_equal
from sluice.learner.objectives.terms.base import ObjectiveInput, Terms
from sluice.learner.objectives.terms.group_term import (
    GroupLoss,
    GroupTerm,
    group_metrics,
    group_of,
    off_policy_term,
)
from sluice.learner.objectives.terms.ratio import ratio_of
from sluice.learner.reduction import mean_of
from sluice.learner.rewards.rewards import group_rewards


def clipped_surrogate(
    log_ratio_BKL: torch.Tensor, advantages_BK: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - low, 1 + high) A), shaped like the ratio, to be maximised."""
    ratio_BKL, advantages_BK1 = ratio_of(log_ratio_BKL), advantages_BK[..., None]
    clipped_BKL = ratio_BKL.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio_BKL * advantages_BK1, clipped_BKL * advantages_BK1)


@torch.no_grad()
def clipped_tokens(
    log_ratio_BKL: torch.Tensor, advantages_BK: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """bool, shaped like the ratio: the clip cuts the gradient."""
    ratio_BKL, advantages_BK1 = ratio_of(log_ratio_BKL), advantages_BK[..., None]
    above_BKL, below_BKL = ratio_BKL > 1 + clip_high, ratio_BKL < 1 - clip_low
    return ((advantages_BK1 > 0) & above_BKL) | ((advantages_BK1 < 0) & below_BKL)


def log_ratio_at(log_ratio_BKL: torch.Tensor, level: Literal["token", "sequence", "gspo"]) -> torch.Tensor:
    """log rho: `[B, K, L]` of tokens, `[B, K, 1]` of candidates."""
    if level == "sequence":
        return log_ratio_BKL.sum(dim=-1, keepdim=True)
    if level == "gspo":
        return log_ratio_BKL.mean(dim=-1, keepdim=True)
    return log_ratio_BKL


def grpo_term(
    inputs: ObjectiveInput, settings: GrpoSettings, admitted_B: torch.Tensor | None = None
) -> GroupTerm:
    """L_GRPO of each prompt, 0 where it is not admitted (None: all are).

    The reference may be None only when `kl_beta` is 0.
    """
    group = group_of(inputs, settings, admitted_B)
    log_ratio_BKL = log_ratio_at(group.log_probs_BKL - group.old(settings), settings.ratio)
    surrogate_BKL = clipped_surrogate(log_ratio_BKL, group.advantages_BK, *settings.clips)
    metrics = {
        "ratio_mean": mean_of(ratio_of(log_ratio_BKL)),
        "clip_share": mean_of(clipped_tokens(log_ratio_BKL, group.advantages_BK, *settings.clips)),
        **group_metrics(inputs, group),
    }
    return off_policy_term(inputs, group, surrogate_BKL, settings, metrics)


class GrpoLoss(GroupLoss):
    """GRPO alone; with `drop_equal_groups` its mean is over the groups whose rewards differ."""

    settings: GrpoSettings

    def term(self, inputs: ObjectiveInput) -> GroupTerm:
        """L_GRPO of each prompt."""
        return grpo_term(inputs, self.settings)

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The prompts, or the groups that are not dropped."""
        if not self.settings.drop_equal_groups:
            return super().normaliser(batch)
        assert isinstance(batch, GroupBatch)
        # The settings refuse to drop groups where GT is injected, so that the rewards follow from the batch
        # alone.
        rewards = group_rewards(
            batch, self.settings.rewards, self.settings.ground_truth, self.settings.invalid_margin
        ).rewards_BK
        return (~all_equal(rewards)).sum().double()

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """Mean L_GRPO over the prompts, or over the groups that are not dropped."""
        if not self.settings.drop_equal_groups:
            return super().__call__(inputs)
        term = self.term(inputs)
        kept_B = ~all_equal(term.rewards.rewards_BK)
        loss = torch.where(kept_B, term.loss_B, 0.0).sum() / kept_B.sum().clamp(min=1)
        terms = self.terms(inputs, term, loss)
        kept = {
            "loss": mean_of(term.loss_B, kept_B),
            "grpo": mean_of(term.loss_B, kept_B),
            "kept": mean_of(kept_B),
        }
        return Terms(loss=loss, metrics=terms.metrics | kept)
