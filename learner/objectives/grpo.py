"""The group-relative policy gradient (GRPO, arXiv 2402.03300), alone or as the gated term of a mixture.

    L_GRPO(x) = -(1/K) sum_i (1/L) sum_t { w_it * min(rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i) - beta * k3_it }

    rho = pi / pi_old,    k3 = exp(d) - d - 1 with d = log pi_ref - log pi

pi_old is the behaviour policy as the engine recorded it, or the learner at the start of the batch; then w is the
detached truncated ratio clip(pi_start / pi_engine, low, high) of each token or of the whole sequence (TIS), otherwise
1. All log-probs, the reference's too, are those of the rollouts' distribution (temperature, allowed tokens), since
ratios between distributions with different supports are biased.
"""

from dataclasses import dataclass

import torch

from learner.advantages import grpo_advantages
from learner.batch import GroupBatch, LoggedBatch
from learner.objective_settings import CorrectionSettings, GrpoSettings
from learner.objectives.base import Objective, Terms, mean_of
from learner.objectives.nll import nll_per_prompt
from learner.rewards import GroupRewards, group_rewards
from learner.shared_prefix import BranchScores


@dataclass(frozen=True, kw_only=True)
class GrpoTerm:
    """L_GRPO of each prompt, before any gate."""

    loss_B: torch.Tensor
    rewards: GroupRewards
    metrics: dict[str, torch.Tensor]  # see `Terms.metrics`


def clipped_surrogate(
    log_ratio_BKL: torch.Tensor, advantages_BK: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - low, 1 + high) A), `[B, K, L]`, to be maximised."""
    ratio_BKL, advantages_BK1 = log_ratio_BKL.exp(), advantages_BK[..., None]
    clipped_BKL = ratio_BKL.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio_BKL * advantages_BK1, clipped_BKL * advantages_BK1)


def k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 with d = log pi_ref - log pi: a non-negative estimate of KL(pi || pi_ref) on samples of pi."""
    difference = reference - log_probs
    return difference.exp() - difference - 1


@torch.no_grad()
def truncated_correction(
    start_BKL: torch.Tensor, behaviour_BKL: torch.Tensor, settings: CorrectionSettings
) -> torch.Tensor:
    """Detached truncated ratio of batch-start learner to engine: `[B, K, L]` per token, `[B, K, 1]` per sequence."""
    log_ratio = start_BKL - behaviour_BKL
    if settings.level == "none":
        return torch.ones_like(log_ratio)
    if settings.level == "sequence":
        log_ratio = log_ratio.sum(dim=-1, keepdim=True)
    return log_ratio.exp().clamp(settings.low, settings.high)


def grpo_term(
    batch: GroupBatch,
    scores: BranchScores,
    start_BSL: torch.Tensor,
    reference_BSL: torch.Tensor | None,
    settings: GrpoSettings,
) -> GrpoTerm:
    """L_GRPO of each prompt. The reference may be None only when `kl_beta` is 0."""
    rewards = group_rewards(
        batch, settings.ground_truth, settings.invalid_margin, torch.isfinite(start_BSL[:, 0]).all(dim=-1)
    )
    advantages_BK = grpo_advantages(rewards.rewards_BK)
    log_probs_BKL = _members(scores.log_probs_BSL, rewards)
    start_BKL = _members(start_BSL, rewards)
    behaviour_BKL = torch.where(rewards.injected_BK[..., None], start_BKL, batch.behaviour_log_probs_BKL)

    old_BKL = behaviour_BKL if settings.old_policy == "behaviour" else start_BKL
    log_ratio_BKL = log_probs_BKL - old_BKL
    surrogate_BKL = clipped_surrogate(log_ratio_BKL, advantages_BK, settings.clip_low, settings.clip_high)
    objective_BKL = surrogate_BKL * truncated_correction(start_BKL, behaviour_BKL, settings.correction)
    metrics = _diagnostics(batch, rewards, advantages_BK, log_ratio_BKL, start_BKL, scores, settings)
    if settings.kl_beta > 0:
        assert reference_BSL is not None, "kl_beta > 0 needs the reference's log-probs"
        kl_BKL = k3(log_probs_BKL, _members(reference_BSL, rewards))
        objective_BKL = objective_BKL - settings.kl_beta * kl_BKL
        metrics["kl"] = mean_of(kl_BKL)
    return GrpoTerm(loss_B=-objective_BKL.mean(dim=(1, 2)), rewards=rewards, metrics=metrics)


def reward_metrics(rewards_BK: torch.Tensor, admitted_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean reward of the groups whose reward gradient counts, and of the others."""
    reward_B = rewards_BK.mean(dim=-1)
    return {
        "gate_rate": mean_of(admitted_B),
        "reward_admitted": mean_of(reward_B, admitted_B),
        "reward_refused": mean_of(reward_B, ~admitted_B),
    }


def _members(values_BSL: torch.Tensor, rewards: GroupRewards) -> torch.Tensor:
    """The branches that make up the group, `[B, K, L]`."""
    index_BKL = rewards.branch_BK[..., None].expand(-1, -1, values_BSL.shape[-1])
    return values_BSL.gather(1, index_BKL)


@torch.no_grad()
def _diagnostics(
    batch: GroupBatch,
    rewards: GroupRewards,
    advantages_BK: torch.Tensor,
    log_ratio_BKL: torch.Tensor,
    start_BKL: torch.Tensor,
    scores: BranchScores,
    settings: GrpoSettings,
) -> dict[str, torch.Tensor]:
    """Over all candidate tokens, admitted or not; `hit_share` is the share of prompts with a candidate that hit."""
    ratio_BKL, advantages_BK1 = log_ratio_BKL.exp(), advantages_BK[..., None]
    clipped_BKL = ((advantages_BK1 > 0) & (ratio_BKL > 1 + settings.clip_high)) | (
        (advantages_BK1 < 0) & (ratio_BKL < 1 - settings.clip_low)
    )
    drawn_BKL = ~rewards.injected_BK[..., None].expand_as(start_BKL)
    return {
        "ratio_mean": mean_of(ratio_BKL),
        "clip_share": mean_of(clipped_BKL),
        "entropy": mean_of(scores.entropy_BSL[:, 1:]),
        "invalid_share": mean_of(~batch.valid_BK),
        "hit_share": mean_of(batch.hit_BK.any(dim=-1)),
        "mismatch": mean_of((start_BKL - batch.behaviour_log_probs_BKL).abs(), drawn_BKL),
    }


class GrpoLoss(Objective):
    """GRPO alone, on every prompt; the NLL is reported, not trained."""

    def __init__(self, settings: GrpoSettings) -> None:
        """Train by `settings`."""
        self.settings = settings
        self.needs_reference = settings.kl_beta > 0

    def __call__(
        self,
        batch: LoggedBatch,
        scores: BranchScores,
        start: BranchScores,
        reference_BSL: torch.Tensor | None,
    ) -> Terms:
        """Mean L_GRPO over the prompts."""
        assert isinstance(batch, GroupBatch)
        term = grpo_term(batch, scores, start.log_probs_BSL, reference_BSL, self.settings)
        everyone_B = torch.ones_like(term.loss_B, dtype=torch.bool)
        metrics = {
            "loss": mean_of(term.loss_B),
            "nll": mean_of(nll_per_prompt(scores)),
            "grpo": mean_of(term.loss_B),
            **term.metrics,
            **reward_metrics(term.rewards.rewards_BK, everyone_B),
        }
        return Terms(loss=term.loss_B.mean(), metrics=metrics)
