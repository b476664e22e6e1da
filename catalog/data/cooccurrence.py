"""Which items stand near each other in histories.

Item vectors and the ItemKNN baseline are made of these counts.
"""

import numpy as np
import scipy.sparse as sp

_PENDING_PAIRS = 1 << 22


class CoOccurrence:
    """Streamed counts of how often two items stand at most `window` places apart.

    A pair that stands k places apart counts 1/sqrt(k).
    """

    def __init__(self, items: int, window: int) -> None:
        self.popularity = np.zeros(items, dtype=np.int64)  # [N] occurrences
        self._window = window
        self._sum = sp.csr_matrix((items, items), dtype=np.float64)
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
        return (self._sum + self._sum.T).tocsr()

    def _flush(self) -> None:
        if not self._pending:
            return
        left, right = (np.concatenate([pair[side] for pair in self._pending]) for side in (0, 1))
        weight = np.concatenate([np.full(len(pair[0]), pair[2]) for pair in self._pending])
        self._sum = self._sum + sp.csr_matrix((weight, (left, right)), shape=self._sum.shape)
        self._pending, self._pending_pairs = [], 0


class SharedUsers:
    """Streamed counts of how many users two items share.

    A user of n items counts 1/n, so that heavy users do not dominate.
    """

    def __init__(self, items: int) -> None:
        self._sum = sp.csr_matrix((items, items), dtype=np.float64)

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        """Count whole sequences `[n]`: `items`, and whose they are; a user's stand together."""
        if len(items) == 0:
            return
        row = np.cumsum(np.append(0, users[1:] != users[:-1]))
        consumed = sp.csr_matrix(
            (np.ones(len(items)), (row, items)), shape=(int(row[-1]) + 1, self._sum.shape[0])
        )
        consumed.data[:] = 1.0  # an item consumed twice counts once
        scaled = sp.diags(1 / np.sqrt(np.diff(consumed.indptr))) @ consumed
        self._sum = self._sum + scaled.T @ scaled

    def matrix(self) -> sp.csr_matrix:
        """Symmetric float64 `[N, N]` with an empty diagonal."""
        return (self._sum - sp.diags(self._sum.diagonal())).tocsr()


def mix_counts(near: sp.csr_matrix, shared: sp.csr_matrix, share: float) -> sp.csr_matrix:
    """Both kinds of counts as one, each scaled to sum 1 first; `share` is that of the shared users."""
    parts = [
        counts * (weight / counts.sum())
        for counts, weight in ((near, 1 - share), (shared, share))
        if weight > 0 and counts.sum() > 0
    ]
    return sum(parts, sp.csr_matrix(near.shape)).tocsr()
