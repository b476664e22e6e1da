"""The rewards of a group: the configured components, hallucinations, and how the ground truth (GT) enters.

- The components and their sum: `sluice.learner.rewards.components`.
- A hallucination gets the group's lowest valid reward minus a margin and stays in the group. [ours] A group
  without any valid candidate has no reward to compare: all its rewards are 0, so its advantages are too.
  [ours]
- `override`: a candidate that equals GT takes the group's maximum reward (GRPO-SR, arXiv 2604.14878). The
  source does so for any positive of the same session; our data has one positive per prompt. [ours]
- `inject`: when no candidate hit, GT replaces the candidate least like it, with GT's own reward (as ReCast
  does). Least like it means: the shortest common prefix of semantic-ID tokens with GT, then the lowest
  likelihood under the behaviour policy, then the first. [ours] Nobody drew GT, so its behaviour log-prob is
  the learner's own, detached; among likelihoods GT holds the place of the candidate that it replaced. [ours]

Definition: docs/algorithms.md, Ground truth in the group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from sluice.learner.batches.batch import GroupBatch
from sluice.learner.reduction import mean_of
from sluice.learner.rewards.components import component_values
from sluice.learner.rewards.settings import RelevanceReward, RewardComponent


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """The group that GRPO compares: which branch each member is, and its reward."""

    rewards_BK: torch.Tensor  # float32
    branch_BK: torch.Tensor  # int64, index of the member's branch: k + 1, or 0 where GT was injected
    injected_BK: torch.Tensor  # bool, the member is an injected GT
    # `reward/<type>` of each component: (sum, count) of its own value, before the weight, over valid members.
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def group_rewards(
    batch: GroupBatch,
    components: Sequence[RewardComponent],
    ground_truth: Literal["none", "override", "inject"],
    invalid_margin: float,
    injectable_B: torch.Tensor | None = None,
) -> GroupRewards:
    """The rewards of each prompt's group.

    Args:
        batch: of groups.
        components: their values are weighed and summed.
        ground_truth: how GT enters, see above.
        invalid_margin: what a hallucination gets less than the lowest valid reward.
        injectable_B: bool, GT could have been drawn at all; None: always.

    Raises:
        DataError: a component needs a field that the batch does not have.
    """
    candidates = batch.candidates_BKL.shape[1]
    branch_BK = torch.arange(1, candidates + 1, device=batch.target_BL.device).expand_as(
        batch.candidate_items_BK
    )
    injected_BK = torch.zeros_like(batch.valid_BK)
    if ground_truth == "inject":
        missed_B = ~batch.hit_BK.any(dim=-1)
        inject_B = missed_B if injectable_B is None else injectable_B & missed_B
        injected_BK = inject_B[:, None] & (branch_BK == 1 + least_like_target(batch)[:, None])
        batch = with_target_at(batch, injected_BK)
        branch_BK = branch_BK.masked_fill(injected_BK, 0)
    values: dict[str, torch.Tensor] = {
        component.type: component_values(batch, component) for component in components
    }
    rewards_BK = penalise_invalid(compose_rewards(values, components), batch.valid_BK, invalid_margin)
    if ground_truth == "override":
        best_B1 = rewards_BK.amax(dim=-1, keepdim=True)
        rewards_BK = torch.where(batch.hit_BK, best_B1, rewards_BK)
    metrics = {f"reward/{name}": mean_of(value_BK, batch.valid_BK) for name, value_BK in values.items()}
    return GroupRewards(rewards_BK=rewards_BK, branch_BK=branch_BK, injected_BK=injected_BK, metrics=metrics)


def compose_rewards(values: dict[str, torch.Tensor], components: Sequence[RewardComponent]) -> torch.Tensor:
    """The weighted sum `[B, K]` of the components' values `[B, K]`. [ours]

    The relevance gate multiplies the ranker's value.

    >>> from sluice.learner.rewards.settings import HitReward, RankerReward
    >>> values = {"ranker": torch.tensor([[0.5, 0.25]]), "hit": torch.tensor([[0.0, 1.0]])}
    >>> compose_rewards(values, [RankerReward(), HitReward(weight=2.0)])
    tensor([[0.5000, 2.2500]])
    """
    gated = dict(values)
    if "relevance" in gated:
        gated["ranker"] = gated["ranker"] * gated.pop("relevance")
    weighted = [
        component.weight * gated[component.type]
        for component in components
        if not isinstance(component, RelevanceReward)
    ]
    return sum(weighted[1:], start=weighted[0])


def with_target_at(batch: GroupBatch, injected_BK: torch.Tensor) -> GroupBatch:
    """The batch with GT in the marked places.

    Likelihood and popularity there stay those of the candidate that GT replaces.
    """
    return replace(
        batch,
        candidates_BKL=torch.where(injected_BK[..., None], batch.target_BL[:, None], batch.candidates_BKL),
        candidate_items_BK=torch.where(injected_BK, batch.target_items_B[:, None], batch.candidate_items_BK),
        candidate_scores_BK=torch.where(
            injected_BK, batch.target_scores_B[:, None], batch.candidate_scores_BK
        ),
    )


def penalise_invalid(scores_BK: torch.Tensor, valid_BK: torch.Tensor, invalid_margin: float) -> torch.Tensor:
    """The scores `[B, K]`, where invalid candidates get the lowest valid one minus the margin.

    All are 0 in a group without valid candidates.
    """
    lowest_B1 = scores_BK.masked_fill(~valid_BK, torch.inf).amin(dim=-1, keepdim=True)
    rewards_BK = torch.where(valid_BK, scores_BK, lowest_B1 - invalid_margin)
    return torch.where(valid_BK.any(dim=-1, keepdim=True), rewards_BK, 0.0)


def least_like_target(batch: GroupBatch) -> torch.Tensor:
    """Index `[B]` of the candidate with the shortest common prefix with GT.

    Among equals it is the least likely one, then the first.
    """
    agree_BKL = batch.candidates_BKL == batch.target_BL[:, None, :]
    prefix_BK = agree_BKL.long().cumprod(dim=-1).sum(dim=-1)
    shortest_BK = prefix_BK == prefix_BK.amin(dim=-1, keepdim=True)
    return batch.behaviour_log_probs_BKL.sum(dim=-1).masked_fill(~shortest_BK, torch.inf).argmin(dim=-1)
