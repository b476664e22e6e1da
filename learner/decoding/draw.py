"""Draws from next-token distributions, as pure functions of log-probs and given random numbers.

Dimension suffixes: B prompts, W branches of a prompt, K candidates of a prompt, C tokens to choose from,
X = B * K.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the last dimension; where nothing is possible every log-prob is -inf, not NaN."""
    impossible = logits.amax(dim=-1, keepdim=True) == -torch.inf
    return F.log_softmax(logits, dim=-1).masked_fill_(impossible, -torch.inf)


def nucleus_logits(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """`logits` with -inf outside the nucleus, as vLLM takes top_p.

    Tokens are left out from the least likely up while their probabilities add to at most 1 - top_p; the
    likeliest always stays. That is Holtzman et al. (2020) with ties cut by order of sorting.
    """
    ascending, token = logits.sort(dim=-1)
    out = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - top_p
    out[..., -1] = False
    return logits.masked_fill(out.scatter(-1, token, out), -torch.inf)


def draw_codes(log_p_BWC: torch.Tensor, branch_BK: torch.Tensor, uniforms_BK: torch.Tensor) -> torch.Tensor:
    """One independent draw `[B, K]` for each candidate, from its branch's distribution, by inversion.

    That is the first token whose cumulated share exceeds u, in [0, 1). A token of probability 0 is never
    drawn.
    """
    shares_BWC = log_p_BWC.exp().cumsum(dim=-1)
    # The largest float32 u, 1 - 2^-24, times a float32 total never rounds up to the total, so some share
    # exceeds it.
    target_BK = uniforms_BK * shares_BWC[..., -1].gather(1, branch_BK)
    if shares_BWC.shape[1] == 1:
        return torch.searchsorted(shares_BWC[:, 0], target_BK, right=True)
    prompts, width, _ = shares_BWC.shape
    row_BK = torch.arange(prompts, device=branch_BK.device)[:, None] * width + branch_BK
    shares_XC = shares_BWC.flatten(0, 1).index_select(0, row_BK.flatten())
    return torch.searchsorted(shares_XC, target_BK.flatten()[:, None], right=True).view_as(branch_BK)


def distinct_values(values_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct values of each row, ascending, `[B, W]`, and the place of every value among them `[B, K]`.

    W is that of the row with most; other rows repeat their first value at the end.
    """
    ascending_BK, order_BK = values_BK.sort(dim=1)
    new_BK = torch.zeros_like(ascending_BK)
    new_BK[:, 1:] = ascending_BK[:, 1:] != ascending_BK[:, :-1]
    rank_BK = new_BK.cumsum(dim=1)
    place_BK = torch.empty_like(rank_BK).scatter_(1, order_BK, rank_BK)
    distinct_BW = ascending_BK[:, :1].repeat(1, int(rank_BK.max()) + 1).scatter_(1, rank_BK, ascending_BK)
    return distinct_BW, place_BK


def perturb_totals(
    totals_BWC: torch.Tensor, noise_BWC: torch.Tensor, largest_BW: torch.Tensor
) -> torch.Tensor:
    """Gumbel-perturbed log-probs, given the largest of each family of C (Kool et al. 2019, arXiv 1903.06059).

        G = totals + noise,  Z = max G,  result = -log(exp(-largest) - exp(-Z) + exp(-G))  [paper]

    in the stable form of the paper's appendix B.3. Totals are float64 nats of whole prefixes, noise is
    Gumbel(0). What is impossible (-inf) stays so.
    """
    shifted = totals_BWC + noise_BWC
    # log 0 = -inf for the largest of a family, which gets `largest` exactly
    gap = torch.log(-torch.expm1(shifted - shifted.amax(dim=-1, keepdim=True)))
    difference = largest_BW[..., None] - shifted + gap
    result = largest_BW[..., None] - difference.clamp(min=0) - torch.log1p(torch.exp(-difference.abs()))
    # NaN where a whole family is impossible.
    return result.masked_fill(~torch.isfinite(totals_BWC), -torch.inf)


def log_inclusion(totals: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
    """Log of the chance 1 - exp(-exp(l - kappa)) that a sequence of log-prob l exceeds the threshold kappa.

    The chance is that of Kool et al. 2019. It is 1, and its log 0, where kappa is -inf: there is no other
    sequence, so each is certain.
    """
    log_rate = totals - kappa
    # Far below zero the chance is exp(l - kappa) to 1e-13, and its complement would round to 1.
    return torch.where(
        log_rate < -30, log_rate, torch.log(-torch.expm1(-torch.exp(log_rate.clamp(-30, 700))))
    )


def random_streams(keys: Sequence[bytes]) -> list[np.random.Generator]:
    """A stream of random numbers for each 16-byte key, whatever the other keys are."""
    return [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))) for key in keys]
