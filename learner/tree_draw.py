"""Draws from next-token distributions, as pure functions of log-probs and given random numbers.

Dimension suffixes: B prompts, W branches of a prompt, C tokens to choose from, n draws from each branch.
"""

from collections.abc import Sequence

import numpy as np
import torch


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the last dimension; where nothing is possible every log-prob is -inf, not NaN."""
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    return logits - torch.where(torch.isfinite(total), total, 0.0)


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """`logits` with -inf outside the nucleus, as vLLM takes top_p.

    Tokens are left out from the least likely up while their probabilities add to at most 1 - top_p; the likeliest
    always stays. That is Holtzman et al. (2020) with ties cut by order of sorting.
    """
    ascending, token = logits.sort(dim=-1)
    out = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - top_p
    out[..., -1] = False
    return logits.masked_fill(out.scatter(-1, token, out), -torch.inf)


def draw(log_p_BWC: torch.Tensor, uniforms_BWn: torch.Tensor) -> torch.Tensor:
    """n independent draws `[B, W, n]` from each distribution, by inversion: the first token whose share reaches u.

    A token of probability 0 is never drawn. `uniforms_BWn` are in [0, 1).
    """
    shares_BWC = log_p_BWC.exp().cumsum(dim=-1)
    total_BW1 = shares_BWC[..., -1:]
    # u * total may round up to the total itself, which no share exceeds.
    below_total_BW1 = torch.nextafter(total_BW1, torch.zeros_like(total_BW1))
    target_BWn = torch.minimum(uniforms_BWn * total_BW1, below_total_BW1)
    return torch.searchsorted(shares_BWC, target_BWn, right=True)


def uniforms(keys: Sequence[bytes], *shape: int) -> np.ndarray:
    """Float32 `[len(keys), *shape]` in [0, 1): the numbers of each 16-byte key, whatever the other keys are."""
    streams = (np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))) for key in keys)
    return np.stack([stream.random(shape, dtype=np.float32) for stream in streams])
