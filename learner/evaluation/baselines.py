"""The two baselines of every results table: popularity, and co-occurrence with the items just consumed.

Both are fitted on all logs before validation and score the whole catalogue for a history. Items that the user
has seen are scored too: whoever ranks leaves them out.

Definition: docs/algorithms.md, Baselines.
"""

from typing import Self

import numpy as np
import scipy.sparse as sp

from sluice.catalog.data.cooccurrence import CoOccurrence
from sluice.catalog.data.dataset import Dataset

# Chosen on the validation split of MovieLens-100K.
WINDOW = 50  # two items co-occur when at most this many places apart, and this much of a history counts
DECAY = 0.8  # weight of a history item against the one after it

_TIE_BREAK = 1e-9  # below any co-occurrence score that matters


class Popularity:
    """An item's score is how often it was consumed."""

    def __init__(self, popularity: np.ndarray) -> None:
        """`popularity` `[N]` counts occurrences before validation."""
        self._scores = popularity.astype(np.float32)

    @classmethod
    def fit(cls, dataset: Dataset) -> Self:
        """Count the logs before validation."""
        return cls(_count(dataset, window=1).popularity)

    def score(self, histories: list[np.ndarray]) -> np.ndarray:
        """float32 `[B, N]`, the same row for every history."""
        return np.tile(self._scores, (len(histories), 1))


class ItemKNN:
    """Cosine-normalised co-occurrence with the items of the history, recent ones weighing more.

    score(i) = sum over the history's items j, a places before the newest, of DECAY^a * C(i, j) / sqrt(n_i *
    n_j), with C the count of i and j at most WINDOW places apart (k apart counting 1/sqrt(k)) and n the
    number of occurrences. Items that nothing connects to the history follow in order of popularity.
    """

    def __init__(self, counts: sp.csr_matrix, popularity: np.ndarray) -> None:
        """`counts` `[N, N]` symmetric co-occurrence, `popularity` `[N]` occurrences."""
        scale = sp.diags(1 / np.sqrt(np.maximum(popularity, 1)))
        self._similarity = (scale @ counts @ scale).tocsr().astype(np.float32)
        self._prior = (_TIE_BREAK * popularity / max(1, popularity.max())).astype(np.float32)

    @classmethod
    def fit(cls, dataset: Dataset) -> Self:
        """Count the logs before validation."""
        counted = _count(dataset, WINDOW)
        return cls(counted.matrix(), counted.popularity)

    def score(self, histories: list[np.ndarray]) -> np.ndarray:
        """float32 `[B, N]` for histories of int32 item rows, oldest first."""
        recent = [history[-WINDOW:] for history in histories]
        rows = np.repeat(np.arange(len(recent)), [len(history) for history in recent])
        columns = np.concatenate([np.empty(0, dtype=np.int32), *recent])
        weights = np.concatenate([np.empty(0), *(DECAY ** np.arange(len(h) - 1, -1, -1) for h in recent)])
        query = sp.csr_matrix(
            (weights.astype(np.float32), (rows, columns)), shape=(len(recent), len(self._prior))
        )
        scores: np.ndarray = (query @ self._similarity).toarray() + self._prior
        return scores


def _count(dataset: Dataset, window: int) -> CoOccurrence:
    lengths = np.diff(dataset.offsets)
    known = dataset.known_until("fresh")
    users = np.repeat(np.arange(dataset.users), lengths)
    counted = CoOccurrence(dataset.items, window)
    counted.add(users[known], dataset.sequence[known])
    return counted
