"""The mismatch of engine and learner: how likely the batch-start learner finds what the engine drew.

    TIS, `truncate`:  w = clip(pi_start / pi_engine, low, high)
    MIS, `mask`:      w = pi_start / pi_engine within [low, high], 0 outside

per token, or per sequence with the ratio of the whole candidate. Detached; it multiplies the surrogate. Both
are known from language models, where the two sides compute in different precision: truncation keeps every
token and biases the far ones towards the engine, masking drops them.

Definition: docs/algorithms.md, Engine and learner mismatch.
"""

import torch

from sluice.learner.objectives.settings.objective import CorrectionSettings
from sluice.learner.objectives.terms.ratio import ratio_of


@torch.no_grad()
def correction_weights(
    start_BKL: torch.Tensor, behaviour_BKL: torch.Tensor, settings: CorrectionSettings
) -> torch.Tensor:
    """w: `[B, K, L]` per token, `[B, K, 1]` per sequence; ones without correction."""
    if settings.level == "none":
        return torch.ones_like(start_BKL)
    ratio = _ratio(start_BKL, behaviour_BKL, settings)
    if settings.outside == "mask":
        return torch.where(inside_bounds(start_BKL, behaviour_BKL, settings), ratio, 0.0)
    return ratio.clamp(settings.low, settings.high)


@torch.no_grad()
def inside_bounds(
    start_BKL: torch.Tensor, behaviour_BKL: torch.Tensor, settings: CorrectionSettings
) -> torch.Tensor:
    """bool, shaped like the weights: the ratio lies within the bounds."""
    ratio = _ratio(start_BKL, behaviour_BKL, settings)
    return (ratio >= settings.low) & (ratio <= settings.high)


def _ratio(
    start_BKL: torch.Tensor, behaviour_BKL: torch.Tensor, settings: CorrectionSettings
) -> torch.Tensor:
    log_ratio = start_BKL - behaviour_BKL
    if settings.level == "sequence":
        log_ratio = log_ratio.sum(dim=-1, keepdim=True)
    return ratio_of(log_ratio)
