"""Proximal policy optimisation (PPO, arXiv 1707.06347) with a value head over the L tokens of an item.

    reward_t = [t is the last] r(o) - kl_coef * (log pi_start - log pi_ref)_t
    delta_t = reward_t + gamma V_start,t+1 - V_start,t,  V = 0 after the last token
    A_t = sum_k (gamma lambda)^k delta_t+k
    L = mean over prompts, candidates and tokens of
        -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value_weight * max((V - R)^2, (V_clipped - R)^2)

rho = pi / pi_start; R = A + V_start; V_clipped = V_start + clip(V - V_start, -value_clip, value_clip).
Advantages, returns and the KL penalty (k1) are those of the batch start and carry no gradient. All log-probs
are of the rollouts' distribution.

- V_t is the value of the state before token t. Advantages are not whitened: their mean and deviation over a
  batch would differ between its micro-batches; the value head takes the baseline's part. [ours]
- pi_start is the learner at the start of the batch, so staleness of the rollouts is not corrected for. [ours]
- A hallucination gets the group's lowest reward minus a margin; a prompt without any valid candidate has no
  reward and does not count. [ours]

On a bandit the optimum is pi proportional to pi_ref exp(r / kl_coef).

Definition: docs/algorithms.md, PPO.
"""

import torch

from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.objectives.grpo import clipped_surrogate
from sluice.learner.objectives.settings.preference import PpoObjective
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput, Terms, nll_per_prompt
from sluice.learner.objectives.terms.logged import mean_over
from sluice.learner.objectives.terms.ratio import ratio_of
from sluice.learner.reduction import mean_of
from sluice.learner.rewards.rewards import group_rewards


@torch.no_grad()
def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Generalised advantage estimates `[..., L]` of rewards after and values before each of L tokens."""
    advantages, later = [], torch.zeros_like(values[..., 0])
    next_value = torch.zeros_like(later)
    for step in reversed(range(values.shape[-1])):
        delta = rewards[..., step] + gamma * next_value - values[..., step]
        later = delta + gamma * gae_lambda * later
        next_value = values[..., step]
        advantages.append(later)
    return torch.stack(advantages[::-1], dim=-1)


def clipped_value_loss(
    values: torch.Tensor, start: torch.Tensor, returns: torch.Tensor, value_clip: float
) -> torch.Tensor:
    """max((V - R)^2, (V_clipped - R)^2), of any shape."""
    clipped = start + (values - start).clamp(-value_clip, value_clip)
    return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


class PpoLoss(Objective):
    """PPO alone, on every prompt; the NLL is reported, not trained."""

    needs_values = True

    def __init__(self, settings: PpoObjective) -> None:
        """Train by `settings`."""
        self.settings = settings
        self.needs_reference = settings.kl_coef > 0

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The prompts that have a valid candidate."""
        assert isinstance(batch, GroupBatch)
        return batch.valid_BK.any(dim=-1).sum().double()

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """Surrogate and value loss, a mean over the prompts that have a valid candidate."""
        batch, scores, start = inputs.groups, inputs.scores, inputs.start
        settings, counts_B = self.settings, batch.valid_BK.any(dim=-1)
        log_probs_BKL, start_BKL = scores.log_probs_BSL[:, 1:], start.log_probs_BSL[:, 1:]
        assert scores.values_BSL is not None and start.values_BSL is not None, "needs_values"
        values_BKL, start_values_BKL = scores.values_BSL[:, 1:], start.values_BSL[:, 1:]
        group = group_rewards(batch, settings.rewards, "none", settings.invalid_margin)
        rewards_BK = group.rewards_BK.to(start_BKL.dtype)
        last_L = torch.arange(start_BKL.shape[-1], device=start_BKL.device) == start_BKL.shape[-1] - 1
        rewards_BKL = torch.where(last_L, rewards_BK[..., None], 0.0)
        metrics = dict(group.metrics)
        if settings.kl_coef > 0:
            assert inputs.reference_BSL is not None, "kl_coef > 0 needs the reference's log-probs"
            kl_BKL = start_BKL - inputs.reference_BSL[:, 1:]
            rewards_BKL = rewards_BKL - settings.kl_coef * kl_BKL
            metrics["kl"] = mean_of(kl_BKL)
        advantages_BKL = generalised_advantages(
            rewards_BKL, start_values_BKL, settings.gamma, settings.gae_lambda
        )
        returns_BKL = advantages_BKL + start_values_BKL
        log_ratio_BKL = log_probs_BKL - start_BKL
        surrogate_BKL = clipped_surrogate(
            log_ratio_BKL[..., None], advantages_BKL, settings.clip, settings.clip
        )[..., 0]
        value_loss_BKL = clipped_value_loss(values_BKL, start_values_BKL, returns_BKL, settings.value_clip)
        policy_B, value_B = -surrogate_BKL.mean(dim=(1, 2)), value_loss_BKL.mean(dim=(1, 2))
        loss_B = torch.where(counts_B, policy_B + settings.value_weight * value_B, 0.0)
        return Terms(
            loss=mean_over(loss_B, self.normaliser(batch)),
            metrics={
                **metrics,
                "loss": mean_of(loss_B, counts_B),
                "nll": mean_of(nll_per_prompt(scores)),
                "policy_loss": mean_of(policy_B, counts_B),
                "value_loss": mean_of(value_B, counts_B),
                "reward": mean_of(rewards_BK.mean(dim=-1), counts_B),
                "ratio_mean": mean_of(ratio_of(log_ratio_BKL)),
                "clip_share": mean_of(surrogate_BKL < ratio_of(log_ratio_BKL) * advantages_BKL),
                "entropy": mean_of(scores.entropy_BSL[:, 1:]),
                "invalid_share": mean_of(~batch.valid_BK),
                "hit_share": mean_of(batch.hit_BK.any(dim=-1)),
            },
        )
