"""The place that a ranker gives a logged item, and the items of others that it is compared with. All pure.

    place(u, i) = share of m items that others took which the ranker scores below i, ties half

1 is the best place, 1/2 is chance. The m items are drawn by how often they stand in the logs, with
replacement, so that a place estimates the chance that the ranker puts the logged item above what somebody
else took. No item of the user's own is among them. [ours]

Definition: docs/algorithms.md, Gate by user.
"""

import zlib

import numpy as np


def place_of(scores: np.ndarray) -> np.ndarray:
    """The place `[B]` of the first of the scores `[B, 1 + m]` among the others; NaN is no item.

    NaN where there are no others.

    >>> place_of(np.array([[2.0, 1.0, 2.0, 3.0, 0.0]]))
    array([0.625])
    """
    own, others = scores[:, :1], scores[:, 1:]
    below = (others < own).sum(axis=1) + 0.5 * (others == own).sum(axis=1)
    count = (~np.isnan(others)).sum(axis=1)
    return np.where(count > 0, below / np.maximum(count, 1), np.nan)


class OthersItems:
    """Draws of what others took, by how often it stands in the logs."""

    def __init__(self, counts: np.ndarray) -> None:
        """`counts` int `[N]` are the occurrences of each item."""
        self._counts = counts.astype(np.int64)
        self._ends = np.cumsum(self._counts)  # item i has the numbers from the end of i - 1 to its own

    def draw(self, own: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
        """int32 `[count]` item rows, none of which is in `own`; -1 throughout where there is no other.

        They are drawn from all numbers but those of the own items, which are skipped one after the other.
        """
        own = np.unique(own)
        widths = self._counts[own]
        skipped = np.append(0, np.cumsum(widths))
        total = int(self._ends[-1] - skipped[-1])
        if total == 0:
            return np.full(count, -1, dtype=np.int32)
        numbers = np.random.default_rng(seed).integers(total, size=count)
        starts = self._ends[own] - widths - skipped[:-1]  # where each own item stands among the other numbers
        numbers += skipped[np.searchsorted(starts, numbers, side="right")]
        return np.searchsorted(self._ends, numbers, side="right").astype(np.int32)


def seed_of(version: str, user: int, position: int) -> tuple[int, ...]:
    """The seed of a draw: the same for one ranker, user and logged item, whoever asks, and in whatever order.

    `position` is that of the logged item in the user's sequence.
    """
    return zlib.crc32(version.encode()), user, position
