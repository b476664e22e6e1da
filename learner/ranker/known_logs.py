"""The logs that a ranker may learn from: the leading interactions of each user, up to a cut."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.splits import positions_of

_SHORTEST = 3  # interactions of a user that gives some away


@dataclass(frozen=True, kw_only=True)
class KnownLogs:
    """The first `lengths[u]` interactions of each user u."""

    dataset: Dataset
    lengths: np.ndarray  # int64 [U]

    @classmethod
    def until(cls, dataset: Dataset, part: str) -> Self:
        """What lies before the end of a part."""
        return cls(dataset=dataset, lengths=dataset.lengths_until(part))

    def hold_out(self, share: float) -> tuple[Self, Examples]:
        """These logs without the last `share` of each user, and what was left out, as examples.

        A user loses at least one interaction, one of fewer than three none.
        """
        out = np.where(self.lengths >= _SHORTEST, np.maximum(1, (share * self.lengths).astype(np.int64)), 0)
        users = np.repeat(np.arange(len(out), dtype=np.int32), out)
        first = np.repeat(self.lengths - out, out)
        positions = (first + positions_of(np.append(0, np.cumsum(out)))).astype(np.int32)
        rest = type(self)(dataset=self.dataset, lengths=self.lengths - out)
        return rest, Examples(users=users, positions=positions)

    @cached_property
    def rows(self) -> np.ndarray:
        """bool [n], which interactions of the data set these are."""
        return positions_of(self.dataset.offsets) < np.repeat(self.lengths, np.diff(self.dataset.offsets))

    def interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """The users and the items of all these interactions; those of a user stand together, in order."""
        users = np.repeat(np.arange(self.dataset.users), self.lengths)
        return users, self.dataset.sequence[self.rows]

    def item_counts(self) -> np.ndarray:
        """int64 [N], occurrences of each item."""
        return np.bincount(self.dataset.sequence[self.rows], minlength=self.dataset.items)

    def item_shares(self) -> np.ndarray:
        """float32 [N], each item's share of the interactions."""
        counts = self.item_counts()
        shares: np.ndarray = counts / counts.sum()
        return shares.astype(np.float32)
