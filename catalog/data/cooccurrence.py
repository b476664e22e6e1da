"""Which items stand near each other in histories.

Item vectors and the ItemKNN baseline are made of these counts.

No more pairs are held than `most_pairs`, 16.8 million or 64 for each item. Until a sum passes that it is
exact. Then every item keeps its strongest neighbours, as many as half the bound allows, and counting goes on:
lossy counting, as of frequent items in a stream (Manku and Motwani 2002; Misra and Gries 1982). A count is
then never too high, and too low by at most the sum of the weakest counts that its item kept at each cut. An
item with no more neighbours than are kept loses nothing.
"""

from itertools import pairwise
from typing import Protocol

import numpy as np
import scipy.sparse as sp

MOST_PAIRS = 1 << 24  # of one sum, where the catalogue has at most 262,144 items
PAIRS_PER_ITEM = 64  # beyond
MOST_OF_USER = 4096  # a user's latest interactions that `SharedUsers` looks at: their pairs are the square
_PENDING_PAIRS = 1 << 22


class PairCounts(Protocol):
    """Streamed counts of pairs of items."""

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        """Count whole sequences `[n]`: `items` in order of time, and whose they are; a user's stand
        together.
        """

    def matrix(self) -> sp.csr_matrix:
        """Symmetric float64 `[N, N]` with an empty diagonal."""


class CoOccurrence:
    """Streamed counts of how often two items stand at most `window` places apart.

    A pair that stands k places apart counts 1/sqrt(k).
    """

    def __init__(self, items: int, window: int) -> None:
        self.popularity = np.zeros(items, dtype=np.int64)  # [N] occurrences
        self._window = window
        self._sum = _BoundedSum(items)
        self._pending: list[tuple[np.ndarray, np.ndarray, float]] = []
        self._pending_pairs = 0

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        """Count sequences `[n]`: `items` in order of time, and whose they are; a user's stand together."""
        self.popularity += np.bincount(items, minlength=len(self.popularity))
        for lag in range(1, min(self._window, len(items) - 1) + 1):
            same = (users[lag:] == users[:-lag]) & (items[lag:] != items[:-lag])
            left, right = items[:-lag][same], items[lag:][same]
            self._pending.append((left, right, lag**-0.5))
            self._pending_pairs += len(left)
            if self._pending_pairs > _PENDING_PAIRS:
                self._flush()

    def matrix(self) -> sp.csr_matrix:
        """Symmetric float64 `[N, N]` with an empty diagonal."""
        self._flush()
        counts = self._sum.strongest()
        return (counts + counts.T).tocsr()

    def _flush(self) -> None:
        if not self._pending:
            return
        left, right = (np.concatenate([pair[side] for pair in self._pending]) for side in (0, 1))
        weight = np.concatenate([np.full(len(pair[0]), pair[2]) for pair in self._pending])
        self._pending, self._pending_pairs = [], 0
        self._sum.add(sp.csr_matrix((weight, (left, right)), shape=self._sum.matrix.shape))


class SharedUsers:
    """Streamed counts of how many users two items share.

    A user of n items counts 1/n, so that heavy users do not dominate. Of a user with more than
    `MOST_OF_USER` interactions the latest count.
    """

    def __init__(self, items: int) -> None:
        self._sum = _BoundedSum(items)

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        """Count whole sequences `[n]`: `items` in order of time, and whose they are; a user's stand
        together.
        """
        if len(items) == 0:
            return
        row = np.cumsum(np.append(0, users[1:] != users[:-1]))
        ends = np.append(np.flatnonzero(np.diff(row)) + 1, len(row))
        latest = ends[row] - np.arange(len(row)) <= MOST_OF_USER
        row, items = row[latest], items[latest]
        size = self._sum.matrix.shape[0]
        consumed = sp.csr_matrix((np.ones(len(items)), (row, items)), shape=(int(row[-1]) + 1, size))
        consumed.data[:] = 1.0  # an item consumed twice counts once
        scaled = sp.diags(1 / np.sqrt(np.diff(consumed.indptr))) @ consumed
        for users_block in _blocks(np.diff(scaled.indptr), size):
            part = scaled[users_block]
            self._sum.add(part.T @ part)

    def matrix(self) -> sp.csr_matrix:
        """Symmetric float64 `[N, N]` with an empty diagonal."""
        counts = self._sum.strongest()
        counts = (counts - sp.diags(counts.diagonal())).tocsr()
        return counts.maximum(counts.T).tocsr() if self._sum.was_cut else counts


def mix_counts(near: sp.csr_matrix, shared: sp.csr_matrix, share: float) -> sp.csr_matrix:
    """Both kinds of counts as one, each scaled to sum 1 first; `share` is that of the shared users."""
    parts = [
        counts * (weight / counts.sum())
        for counts, weight in ((near, 1 - share), (shared, share))
        if weight > 0 and counts.sum() > 0
    ]
    return sum(parts, sp.csr_matrix(near.shape)).tocsr()


def most_pairs(items: int) -> int:
    """Pairs that one sum over a catalogue of `items` holds."""
    return max(MOST_PAIRS, PAIRS_PER_ITEM * items)


def keep_strongest(counts: sp.csr_matrix, most: int) -> sp.csr_matrix:
    """At most `most` entries of each row, the largest; of equal ones those of the first columns."""
    counts.sort_indices()
    lengths, keep = np.diff(counts.indptr), np.ones(counts.nnz, dtype=bool)
    for row in np.flatnonzero(lengths > most):
        start, end = counts.indptr[row : row + 2]
        keep[start + np.argsort(-counts.data[start:end], kind="stable")[most:]] = False
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    return sp.csr_matrix(
        (counts.data[keep], counts.indices[keep], kept_before[counts.indptr]), shape=counts.shape
    )


class _BoundedSum:
    """A sum of matrices `[N, N]` that drops the weakest entries of its rows once it holds too many."""

    def __init__(self, items: int) -> None:
        self.matrix = sp.csr_matrix((items, items), dtype=np.float64)
        self.was_cut = False
        self._most = most_pairs(items)

    def add(self, more: sp.csr_matrix) -> None:
        self.matrix = self.matrix + more
        if self.matrix.nnz > self._most:
            self.was_cut = True
            self.matrix = self.strongest()

    def strongest(self) -> sp.csr_matrix:
        """All of it, or half the bound once it was passed."""
        if not self.was_cut:
            return self.matrix
        return keep_strongest(self.matrix, self._most // 2 // self.matrix.shape[0])


def _blocks(items_of_users: np.ndarray, items: int) -> list[slice]:
    """Users `[U]` in blocks whose pairs are within the bound."""
    most = most_pairs(items)
    if items**2 <= most:
        return [slice(0, len(items_of_users))]
    block = np.cumsum(items_of_users.astype(np.int64) ** 2) // most
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    return [slice(start, end) for start, end in pairwise([*starts.tolist(), len(items_of_users)])]
