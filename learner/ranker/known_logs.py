"""The logs that a ranker may learn from: the leading interactions of each user, up to a cut."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.splits import Impressions, positions_of

_SHORTEST = 3  # interactions of a user that gives some away


@dataclass(frozen=True, kw_only=True)
class KnownLogs:
    """The first `lengths[u]` interactions of each user u, and what was shown in between."""

    dataset: Dataset
    part: str  # whose end nothing here lies behind
    lengths: np.ndarray  # int64 [U]

    @classmethod
    def until(cls, dataset: Dataset, part: str) -> Self:
        """What lies before the end of a part."""
        return cls(dataset=dataset, part=part, lengths=dataset.lengths_until(part))

    def hold_out(self, share: float) -> tuple[Self, Examples]:
        """These logs without the last `share` of each user, and what was left out, as examples.

        A user loses at least one interaction, one of fewer than three none.
        """
        out = np.where(self.lengths >= _SHORTEST, np.maximum(1, (share * self.lengths).astype(np.int64)), 0)
        users = np.repeat(np.arange(len(out), dtype=np.int32), out)
        first = np.repeat(self.lengths - out, out)
        positions = (first + positions_of(np.append(0, np.cumsum(out)))).astype(np.int32)
        rest = replace(self, lengths=self.lengths - out)
        return rest, Examples(users=users, positions=positions)

    def without(self, users: np.ndarray) -> Self:
        """These logs without those of some users, int rows `[n]`."""
        lengths = self.lengths.copy()
        lengths[users] = 0
        return replace(self, lengths=lengths)

    @cached_property
    def rows(self) -> np.ndarray:
        """bool [n], which interactions of the data set these are."""
        return positions_of(self.dataset.offsets) < np.repeat(self.lengths, np.diff(self.dataset.offsets))

    @cached_property
    def impressions(self) -> Impressions:
        """What was shown and not taken.

        Of a user from whom interactions were held out, only what came before one that is left.
        """
        shown = self.dataset.impressions(self.part)
        whole = self.lengths == self.dataset.lengths_until(self.part)
        return shown.where(whole[shown.users] | (shown.positions < self.lengths[shown.users]))

    def interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """The users and the items of all these interactions; those of a user stand together, in order."""
        users = np.repeat(np.arange(self.dataset.users), self.lengths)
        return users, self.dataset.sequence[self.rows]

    def item_counts(self) -> np.ndarray:
        """int64 [N], occurrences of each item."""
        return np.bincount(self.dataset.sequence[self.rows], minlength=self.dataset.items)

    def exposures(self) -> np.ndarray:
        """int64 [N], how often each item was shown, as far as is known: taken, or an impression."""
        return self.item_counts() + np.bincount(self.impressions.items, minlength=self.dataset.items)

    def item_shares(self) -> np.ndarray:
        """float32 [N], each item's share of the interactions."""
        counts = self.item_counts()
        shares: np.ndarray = counts / counts.sum()
        return shares.astype(np.float32)


class ShownItems:
    """Impressions by the interaction that they stand behind. One before all interactions is left out."""

    def __init__(self, logs: KnownLogs) -> None:
        """Those of `logs`."""
        offsets, shown = logs.dataset.offsets, logs.impressions
        shown = shown.where(shown.positions > 0)
        behind = offsets[shown.users] + shown.positions - 1
        order = np.argsort(behind, kind="stable")
        self._items = shown.items[order]
        self._first = np.searchsorted(behind[order], np.arange(offsets[-1] + 1))

    def in_windows(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The m impressions in windows of interaction rows: window, place and item of each, int64 `[m]`.

        An impression stands in every window that has the interaction before it, behind the item at the
        place. Rows of one time are in any order in a window: the place is the last of that time.
        """
        ordered = np.concatenate([np.sort(window) for window in rows])
        ends = np.cumsum([0, *(len(window) for window in rows)])
        first = self._first[ordered]
        counts = self._first[ordered + 1] - first
        chosen = np.repeat(first, counts) + positions_of(np.append(0, np.cumsum(counts)))
        windows = np.repeat(np.arange(len(rows)), np.diff(ends))
        places = positions_of(ends).astype(np.int64)
        return np.repeat(windows, counts), np.repeat(places, counts), self._items[chosen].astype(np.int64)
