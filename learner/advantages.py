"""Group-relative advantages (GRPO, arXiv 2402.03300).

    A_i = (r_i - mean(r)) / (std(r) + 1e-4),    std with ddof 1, over the K members of a prompt's group

The same advantage holds for every token of member i, and carries no gradient.
"""

import torch

STD_FLOOR = 1e-4


@torch.no_grad()
def grpo_advantages(rewards_BK: torch.Tensor) -> torch.Tensor:
    """Advantages `[B, K]` of rewards `[B, K]`, K >= 2.

    A group whose rewards are all equal gets exact zeros: rounding in the mean must not turn into a signal.
    """
    centred_BK = rewards_BK - rewards_BK.mean(dim=-1, keepdim=True)
    std_B1 = rewards_BK.std(dim=-1, correction=1, keepdim=True)
    equal_B1 = rewards_BK.amax(dim=-1, keepdim=True) == rewards_BK.amin(dim=-1, keepdim=True)
    return torch.where(equal_B1, 0.0, centred_BK / (std_B1 + STD_FLOOR))
