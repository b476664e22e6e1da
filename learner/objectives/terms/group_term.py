"""What all group-relative terms share: the group, its advantages, the sum over it, and what to report.

    term(x) = - sum_i c_i (1/L) sum_t { w_it * surrogate_it - beta * k3_it }

c_i is 1/K, or the member's weight in a group drawn without replacement
(`sluice.learner.objectives.terms.member_weights`); w the correction of engine to batch start
(`sluice.learner.objectives.terms.correction`); k3 the distance from the reference. The surrogate is the
objective's own. Every candidate has the same L tokens, so the means of GRPO (over the tokens of a candidate,
then over candidates), Dr.GRPO (over the constant K*L_max) and DAPO (over all tokens of the batch) are one and
the same here.

All log-probs, the reference's too, are those of the rollouts' distribution (temperature, allowed tokens),
since ratios between distributions with different supports are biased.

A group without any advantage, and one that a gate refuses, costs exactly nothing: its term is 0, its KL
included, and no gradient reaches its log-probs, whatever they are.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from sluice.learner.batches.strata import strata_of
from sluice.learner.objectives.settings.objective import GroupSettings, OffPolicySettings
from sluice.learner.objectives.terms.advantages import group_advantages
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput, Terms, nll_per_prompt
from sluice.learner.objectives.terms.correction import correction_weights, inside_bounds
from sluice.learner.objectives.terms.member_weights import MemberWeights, member_weights
from sluice.learner.objectives.terms.ratio import LARGEST_LOG_RATIO
from sluice.learner.reduction import mean_of
from sluice.learner.rewards.rewards import GroupRewards, group_rewards


@dataclass(frozen=True, kw_only=True)
class Group:
    """The members of every prompt's group; all but `log_probs_BKL` without gradient."""

    log_probs_BKL: torch.Tensor  # the learner's; without gradient where the group does not count
    start_BKL: torch.Tensor  # the learner's before the first update on the batch
    behaviour_BKL: torch.Tensor  # the engine's, and the learner's at the start for an injected GT
    advantages_BK: torch.Tensor
    rewards: GroupRewards
    weights: MemberWeights | None  # None: 1/K each
    counts_B: torch.Tensor  # bool: some member has an advantage, and no gate refuses the group

    def old(self, settings: OffPolicySettings) -> torch.Tensor:
        """Log-probs `[B, K, L]` of the policy that the ratio is taken against."""
        return self.behaviour_BKL if settings.old_policy == "behaviour" else self.start_BKL


@dataclass(frozen=True, kw_only=True)
class GroupTerm:
    """The group-relative term of each prompt, before any gate."""

    loss_B: torch.Tensor
    rewards: GroupRewards
    metrics: dict[str, torch.Tensor]  # see `Terms.metrics`


def group_of(
    inputs: ObjectiveInput, settings: GroupSettings, admitted_B: torch.Tensor | None = None
) -> Group:
    """The group that the learner compares, with rewards and advantages by `settings`.

    `admitted_B`, bool, says which groups a gate lets through; None: all.
    """
    batch, start_BSL = inputs.groups, inputs.start.log_probs_BSL
    rewards = group_rewards(
        batch,
        settings.rewards,
        settings.ground_truth,
        settings.invalid_margin,
        torch.isfinite(start_BSL[:, 0]).all(dim=-1),
    )
    weights = member_weights(batch, settings.inclusion_weights, settings.ground_truth)
    start_BKL = group_members(start_BSL, rewards)
    advantages_BK = group_advantages(rewards.rewards_BK, settings.advantage, weights)
    counts_B = (advantages_BK != 0).any(dim=-1)
    if admitted_B is not None:
        counts_B = counts_B & admitted_B
    log_probs_BKL = group_members(inputs.scores.log_probs_BSL, rewards)
    return Group(
        log_probs_BKL=torch.where(counts_B[:, None, None], log_probs_BKL, log_probs_BKL.detach()),
        start_BKL=start_BKL,
        behaviour_BKL=torch.where(rewards.injected_BK[..., None], start_BKL, batch.behaviour_log_probs_BKL),
        advantages_BK=advantages_BK,
        rewards=rewards,
        weights=weights,
        counts_B=counts_B,
    )


def off_policy_term(
    inputs: ObjectiveInput,
    group: Group,
    surrogate_BKL: torch.Tensor,
    settings: OffPolicySettings,
    metrics: dict[str, torch.Tensor],
) -> GroupTerm:
    """The term of a surrogate `[B, K, L]` or `[B, K, 1]`, to be maximised, with correction and KL by
    `settings`.

    The reference may be None only when `kl_beta` is 0.
    """
    objective_BKL = surrogate_BKL * correction_weights(
        group.start_BKL, group.behaviour_BKL, settings.correction
    )
    if settings.correction.level != "none":
        inside = inside_bounds(group.start_BKL, group.behaviour_BKL, settings.correction)
        metrics["correction_inside"] = mean_of(inside, _drawn(group, inside))
    if settings.kl_beta > 0:
        assert inputs.reference_BSL is not None, "kl_beta > 0 needs the reference's log-probs"
        reference_BKL = group_members(inputs.reference_BSL, group.rewards)
        kl_BKL = k3_divergence(group.log_probs_BKL, reference_BKL)
        objective_BKL = objective_BKL - settings.kl_beta * kl_BKL
        metrics["kl"] = mean_of(kl_BKL)
    return GroupTerm(loss_B=-over_group(objective_BKL, group), rewards=group.rewards, metrics=metrics)


def over_group(values_BKL: torch.Tensor, group: Group) -> torch.Tensor:
    """sum_i c_i (1/L) sum_t of the values, `[B]`; 0 for a group that does not count."""
    weights = group.weights
    if weights is None:
        values_B = values_BKL.mean(dim=(1, 2))
    else:
        values_B = (weights.counts_BK * values_BKL.mean(dim=2)).sum(dim=1)
    return torch.where(group.counts_B, values_B, 0.0)


def group_members(values_BSL: torch.Tensor, rewards: GroupRewards) -> torch.Tensor:
    """The branches that make up the group, `[B, K, L]`."""
    index_BKL = rewards.branch_BK[..., None].expand(-1, -1, values_BSL.shape[-1])
    return values_BSL.gather(1, index_BKL)


def k3_divergence(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 with d = log pi_ref - log pi: a non-negative estimate of KL(pi || pi_ref) on samples of
    pi.

    d is bounded where exp would be too large. Below, the estimate is as good as linear.
    """
    difference = (reference - log_probs).clamp(max=LARGEST_LOG_RATIO)
    return difference.exp() - difference - 1


@torch.no_grad()
def group_metrics(inputs: ObjectiveInput, group: Group) -> dict[str, torch.Tensor]:
    """Over all candidate tokens, admitted or not; `hit_share` is the share of prompts with a candidate that
    hit.
    """
    batch = inputs.groups
    mismatch_BKL = (group.start_BKL - batch.behaviour_log_probs_BKL).abs()
    metrics = {
        "entropy": mean_of(inputs.scores.entropy_BSL[:, 1:]),
        "invalid_share": mean_of(~batch.valid_BK),
        "hit_share": mean_of(batch.hit_BK.any(dim=-1)),
        "mismatch": mean_of(mismatch_BKL, _drawn(group, mismatch_BKL)),
        **group.rewards.metrics,
    }
    if batch.popularity_cuts is not None and batch.candidate_popularity_BK is not None:
        metrics |= advantage_by_popularity(
            group.advantages_BK.masked_fill(group.rewards.injected_BK, torch.nan),
            strata_of(batch.candidate_popularity_BK, batch.popularity_cuts),
        )
    if group.weights is not None:
        metrics["inclusion_weight_sum"] = mean_of(
            group.weights.raw_BK.sum(dim=-1)
        )  # 1 in the mean over many groups
    return metrics


def advantage_by_popularity(
    advantages_BK: torch.Tensor, strata: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Mean advantage of the candidates of each stratum, and the share of those with a positive one; NaN is
    nobody's.
    """
    metrics = {}
    for name, inside_BK in strata.items():
        counted_BK = inside_BK & ~advantages_BK.isnan()
        metrics[f"advantage/{name}"] = mean_of(advantages_BK, counted_BK)
        metrics[f"advantage_positive/{name}"] = mean_of(advantages_BK > 0, counted_BK)
    return metrics


def reward_metrics(rewards_BK: torch.Tensor, gate_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean of the gate, and mean reward of the groups that it lets through (by half or more) and of the
    others.
    """
    reward_B, admitted_B = rewards_BK.mean(dim=-1), gate_B >= 0.5
    return {
        "gate_rate": mean_of(gate_B),
        "reward_admitted": mean_of(reward_B, admitted_B),
        "reward_refused": mean_of(reward_B, ~admitted_B),
    }


def _drawn(group: Group, like: torch.Tensor) -> torch.Tensor:
    """bool, shaped like `like` `[B, K, ...]`: the engine drew the member."""
    return ~group.rewards.injected_BK[..., None].expand_as(like)


class GroupLoss(Objective):
    """A group-relative term alone, on every prompt; the NLL is reported, not trained."""

    def __init__(self, settings: GroupSettings) -> None:
        """Train by `settings`."""
        self.settings = settings
        self.needs_reference = settings.needs_reference

    @abstractmethod
    def term(self, inputs: ObjectiveInput) -> GroupTerm:
        """The term of each prompt."""

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The mean of the term over the prompts."""
        term = self.term(inputs)
        return self.terms(inputs, term, term.loss_B.mean())

    def terms(self, inputs: ObjectiveInput, term: GroupTerm, loss: torch.Tensor) -> Terms:
        """`loss` with the metrics of `term`."""
        metrics = {
            "loss": mean_of(term.loss_B),
            "nll": mean_of(nll_per_prompt(inputs.scores)),
            "grpo": mean_of(term.loss_B),
            **term.metrics,
            **reward_metrics(term.rewards.rewards_BK, torch.ones_like(term.loss_B)),
        }
        return Terms(loss=loss, metrics=metrics)
