"""Group-relative advantages: how much better a member is than its group.

    grpo      A_i = (r_i - mean(r)) / (std(r) + 1e-4)                 (GRPO, arXiv 2402.03300)
    dr_grpo   A_i = r_i - mean(r)                                     (Dr.GRPO, arXiv 2503.20783)
    rloo      A_i = r_i - mean of the others' r = K/(K-1) (r_i - mean(r))   (RLOO, arXiv 2402.14740)

std has ddof 1 over the K members. The same advantage holds for every token of member i, and carries no
gradient. Groups drawn without replacement replace r_i - mean(r) by the weighted advantage of
`sluice.learner.objectives.terms.member_weights`; `grpo` then divides by the weighted standard deviation
[ours], and `rloo` is `dr_grpo`, since that baseline leaves the member out already.

Definition: docs/algorithms.md, Advantages.
"""

from typing import Literal

import torch

from sluice.learner.objectives.terms.member_weights import MemberWeights, weighted_advantages

STD_FLOOR = 1e-4


@torch.no_grad()
def group_advantages(
    rewards_BK: torch.Tensor, kind: Literal["grpo", "dr_grpo", "rloo"], weights: MemberWeights | None = None
) -> torch.Tensor:
    """Advantages `[B, K]` of rewards `[B, K]`, K >= 2.

    A group whose rewards are all equal gets exact zeros: rounding in the mean must not turn into a signal.
    Not so with unbiased weights and no division, where dropping single groups would bias the sum over them.

    >>> group_advantages(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]), "dr_grpo")
    tensor([[-2., -1.,  3.],
            [ 0.,  0.,  0.]])
    """
    candidates, wide_BK = rewards_BK.shape[-1], rewards_BK.double()  # squares may overflow float32
    if weights is None:
        centred_BK = wide_BK - wide_BK.mean(dim=-1, keepdim=True)
        std_B1 = wide_BK.std(dim=-1, correction=1, keepdim=True)
        if kind == "rloo":
            centred_BK = centred_BK * (candidates / (candidates - 1))
    else:
        centred_BK = weighted_advantages(wide_BK, weights)
        std_B1 = _weighted_std(wide_BK, weights.raw_BK)
    if kind == "grpo":
        centred_BK = centred_BK / (std_B1 + STD_FLOOR)
    elif weights is not None and not weights.normalised:
        return centred_BK.to(rewards_BK.dtype)
    return torch.where(all_equal(rewards_BK)[:, None], 0.0, centred_BK).to(rewards_BK.dtype)


def all_equal(rewards_BK: torch.Tensor) -> torch.Tensor:
    """bool `[B]`: the group's rewards say nothing."""
    return rewards_BK.amax(dim=-1) == rewards_BK.amin(dim=-1)


def _weighted_std(rewards_BK: torch.Tensor, weights_BK: torch.Tensor) -> torch.Tensor:
    shares_BK = weights_BK / weights_BK.sum(dim=-1, keepdim=True)
    mean_B1 = (shares_BK * rewards_BK).sum(dim=-1, keepdim=True)
    return (shares_BK * (rewards_BK - mean_B1).square()).sum(dim=-1, keepdim=True).sqrt()
