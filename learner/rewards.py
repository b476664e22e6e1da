"""From ranker scores to the rewards of a group, and how the ground truth (GT) may enter it.

- A hallucination gets the group's lowest valid reward minus a margin and stays in the group. [ours] A group without
  any valid candidate has no reward to compare: all its rewards are 0, so its advantages are too. [ours]
- `override`: a candidate that equals GT takes the group's maximum reward (GRPO-SR, arXiv 2604.14878).
- `inject`: when no candidate hit, GT replaces the candidate least like it, with its own ranker score as reward (as
  ReCast does). Least like it means: the shortest common prefix of semantic-ID tokens with GT, then the lowest
  likelihood under the behaviour policy, then the first. [ours] Nobody drew GT, so its behaviour log-prob is the
  learner's own, detached. [ours]
"""

from dataclasses import dataclass
from typing import Literal

import torch

from learner.batch import GroupBatch


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """The group that GRPO compares: which branch each member is, and its reward."""

    rewards_BK: torch.Tensor  # float32
    branch_BK: torch.Tensor  # int64, index of the member's branch: k + 1, or 0 where GT was injected
    injected_BK: torch.Tensor  # bool, the member is an injected GT


@torch.no_grad()
def group_rewards(
    batch: GroupBatch,
    ground_truth: Literal["none", "override", "inject"],
    invalid_margin: float,
    injectable_B: torch.Tensor | None = None,
) -> GroupRewards:
    """The rewards of each prompt's group. `injectable_B`: GT could have been drawn at all (None: always)."""
    candidates = batch.candidates_BKL.shape[1]
    scores_BK, valid_BK = batch.candidate_scores_BK, batch.valid_BK
    branch_BK = torch.arange(1, candidates + 1, device=scores_BK.device).expand_as(scores_BK)
    injected_BK = torch.zeros_like(valid_BK)
    if ground_truth == "inject":
        wanted_B = ~batch.hit_BK.any(dim=-1) if injectable_B is None else injectable_B & ~batch.hit_BK.any(dim=-1)
        injected_BK = wanted_B[:, None] & (branch_BK == 1 + least_like_target(batch)[:, None])
        scores_BK = torch.where(injected_BK, batch.target_scores_B[:, None], scores_BK)
        valid_BK = valid_BK | injected_BK
        branch_BK = branch_BK.masked_fill(injected_BK, 0)
    rewards_BK = penalised(scores_BK, valid_BK, invalid_margin)
    if ground_truth == "override":
        best_B1 = rewards_BK.amax(dim=-1, keepdim=True)
        rewards_BK = torch.where(batch.hit_BK, best_B1, rewards_BK)
    return GroupRewards(rewards_BK=rewards_BK, branch_BK=branch_BK, injected_BK=injected_BK)


def penalised(scores_BK: torch.Tensor, valid_BK: torch.Tensor, invalid_margin: float) -> torch.Tensor:
    """The scores, the lowest valid one minus the margin for invalid candidates; all 0 in a group without valid ones."""
    lowest_B1 = scores_BK.masked_fill(~valid_BK, torch.inf).amin(dim=-1, keepdim=True)
    rewards_BK = torch.where(valid_BK, scores_BK, lowest_B1 - invalid_margin)
    return torch.where(valid_BK.any(dim=-1, keepdim=True), rewards_BK, 0.0)


def least_like_target(batch: GroupBatch) -> torch.Tensor:
    """Index `[B]` of the candidate with the shortest common prefix with GT; ties: the least likely, then the first."""
    agree_BKL = batch.candidates_BKL == batch.target_BL[:, None, :]
    prefix_BK = agree_BKL.long().cumprod(dim=-1).sum(dim=-1)
    shortest_BK = prefix_BK == prefix_BK.amin(dim=-1, keepdim=True)
    return batch.behaviour_log_probs_BKL.sum(dim=-1).masked_fill(~shortest_BK, torch.inf).argmin(dim=-1)
