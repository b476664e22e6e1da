"""What each member of a group counts when the group was drawn without replacement.

Independent samples count 1/K each. The K members of a stochastic beam (Gumbel top-k, Kool et al. 2019, arXiv
1903.06059) are distinct, so that counting them alike would give unlikely items too much; unbiased is a sum
with

    w_i = p(o_i) / q(o_i),    E[ sum_i w_i f(o_i) ] = sum_o p(o) f(o)

with p the behaviour policy and q the chance that o_i is in the group, given the threshold that the search
stopped at (priority sampling: for i != j also E[w_i w_j] = p_i p_j). With the baseline built from the same
weights (Kool, van Hoof & Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; set in context by
arXiv 2002.06043):

    unbiased     sum_i w_i g_i ( r_i (1 - p_i + w_i) - sum_j w_j r_j )
    normalised   sum_i (w_i / W_i) g_i ( r_i - sum_j w_j r_j / W ),    W = sum_j w_j,  W_i = W - w_i + p_i

The first has the policy gradient as its expectation: the term r_i (w_i - p_i) takes the member out of its own
baseline. It has it on policy, and off policy with the ratio of whole sequences, as far as nothing is clipped.
The second is biased, the less the larger K, but cannot be thrown off by a sum of weights far from 1. Members
count w_i, or w_i / W_i, in place of 1/K; their advantages are the brackets.

Definition: docs/algorithms.md, Groups drawn without replacement.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from sluice.catalog.errors import ConfigError
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.objectives.terms.ratio import LARGEST_LOG_RATIO, ratio_of


@dataclass(frozen=True, kw_only=True)
class MemberWeights:
    """Of groups drawn without replacement; carries no gradient."""

    counts_BK: torch.Tensor  # what a member counts in the sum over the group, in place of 1/K
    raw_BK: torch.Tensor  # w = p / q
    probabilities_BK: torch.Tensor  # p, of the behaviour policy
    normalised: bool


@torch.no_grad()
def member_weights(
    batch: GroupBatch,
    kind: Literal["unbiased", "normalised"],
    ground_truth: Literal["none", "override", "inject"],
) -> MemberWeights | None:
    """The weights of the batch's members; None where they are samples (or exact beams) and count 1/K each.

    Raises:
        ConfigError: GT may be injected into such a group: nobody drew it, so that it has no weight.
    """
    if batch.inclusion_log_probs_BK is None:
        return None
    if ground_truth == "inject":
        raise ConfigError(
            "objective.grpo.ground_truth=inject puts an item into the group that nobody drew, and groups "
            "drawn without replacement weigh each member by its chance of being drawn: set it to override or "
            "none, or rollout.decode.kind to sample"
        )
    log_p_BK = batch.behaviour_log_probs_BKL.sum(dim=-1)
    raw_BK, p_BK = ratio_of(log_p_BK - batch.inclusion_log_probs_BK), log_p_BK.exp()
    counts_BK = raw_BK
    if kind == "normalised":
        rest_BK = raw_BK.sum(dim=-1, keepdim=True) - raw_BK + p_BK
        counts_BK = raw_BK / rest_BK.clamp(min=math.exp(-LARGEST_LOG_RATIO))
    return MemberWeights(
        counts_BK=counts_BK, raw_BK=raw_BK, probabilities_BK=p_BK, normalised=kind == "normalised"
    )


@torch.no_grad()
def weighted_advantages(rewards_BK: torch.Tensor, weights: MemberWeights) -> torch.Tensor:
    """The brackets above, `[B, K]`."""
    raw_BK = weights.raw_BK
    total_B1 = (raw_BK * rewards_BK).sum(dim=-1, keepdim=True)
    if weights.normalised:
        return rewards_BK - total_B1 / raw_BK.sum(dim=-1, keepdim=True)
    return rewards_BK * (1 - weights.probabilities_BK + raw_BK) - total_B1
