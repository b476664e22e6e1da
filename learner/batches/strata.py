"""Head, middle and tail of the catalogue: items that make up a third of the interactions each."""

from typing import NamedTuple

import numpy as np
import torch


class PopularityCuts(NamedTuple):
    """Shares of the interactions from which an item belongs to the head, and to the middle."""

    head: float
    middle: float


def popularity_cuts(shares: np.ndarray) -> PopularityCuts:
    """The cuts between items of these shares `[N]`. Items of equal share are in one stratum, the higher.

    >>> popularity_cuts(np.array([0.1, 0.4, 0.1, 0.3, 0.1]))
    PopularityCuts(head=0.4, middle=0.3)
    """
    ordered = np.sort(shares)[::-1]
    reached = np.cumsum(ordered, dtype=np.float64)
    places = np.searchsorted(reached, reached[-1] * np.asarray([1, 2]) / 3 - 1e-9)
    return PopularityCuts(*(float(ordered[place]) for place in places))


def strata_of(shares: torch.Tensor, cuts: PopularityCuts) -> dict[str, torch.Tensor]:
    """bool, shaped like the shares, for each stratum; NaN, which is no item, is in none."""
    head, middle = shares >= cuts.head, shares >= cuts.middle
    return {"head": head, "middle": middle & ~head, "tail": ~(middle | shares.isnan())}
