"""Models of which items go together: popularity, ItemKNN and EASE. Each scores the whole catalogue for a
history.

They are parts of the built-in ranker (`sluice.learner.ranker.stack`) and the baselines of every results
table (`sluice.learner.evaluation.baselines`). Items that the user has seen are scored too: whoever ranks
leaves them out.

Definition: docs/algorithms.md, Item models.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack

from sluice.catalog.data.cooccurrence import CoOccurrence
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings

_TIE_BREAK = 1e-9  # below any co-occurrence score that matters
_COLUMNS = 1024  # of the Gram matrix that are counted at a time
_BYTES_PER_PAIR = 12  # of items, while EASE is fitted: float64 of the matrix, and float32 of the weights


class Popularity:
    """An item's score is how often it was consumed."""

    def __init__(self, popularity: np.ndarray) -> None:
        """`popularity` `[N]` counts occurrences."""
        self._scores = popularity.astype(np.float32)

    @classmethod
    def fit(cls, logs: KnownLogs) -> Self:
        """Count the logs."""
        return cls(logs.item_counts())

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[B, N]`, the same row for every history."""
        return np.tile(self._scores, (len(histories), 1))


class ItemKNN:
    """Cosine-normalised co-occurrence with the items of the history, recent ones weighing more.

    score(i) = sum over the history's last `window` items j, a places before the newest, of decay^a * C(i, j)
    / sqrt(n_i * n_j), with C the count of i and j at most `window` places apart (k apart counting 1/sqrt(k))
    and n the number of occurrences. Items that nothing connects to the history follow in order of popularity.
    """

    FILE = "itemknn.npz"

    def __init__(
        self, counts: sp.csr_matrix, popularity: np.ndarray, settings: ItemKnnSettings | None = None
    ) -> None:
        """`counts` `[N, N]` symmetric co-occurrence, `popularity` `[N]` occurrences."""
        scale = sp.diags(1 / np.sqrt(np.maximum(popularity, 1)))
        self._similarity = (scale @ counts @ scale).tocsr().astype(np.float32)
        self._prior = (_TIE_BREAK * popularity / max(1, popularity.max())).astype(np.float32)
        self.settings = settings or ItemKnnSettings()

    @classmethod
    def fit(cls, logs: KnownLogs, settings: ItemKnnSettings | None = None) -> Self:
        """Count the logs."""
        settings = settings or ItemKnnSettings()
        counted = CoOccurrence(logs.dataset.items, settings.window)
        counted.add(*logs.interactions())
        return cls(counted.matrix(), counted.popularity, settings)

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[B, N]` for histories of int32 item rows, oldest first."""
        query = _weigh_histories(histories, len(self._prior), self.settings.window, self.settings.decay)
        scores: np.ndarray = (query @ self._similarity).toarray() + self._prior
        return scores

    @property
    def items(self) -> int:
        """N."""
        return len(self._prior)

    def contents(self) -> Iterator[bytes]:
        """The bytes of what was fitted."""
        matrix = self._similarity
        yield from (part.tobytes() for part in (matrix.data, matrix.indices, matrix.indptr, self._prior))

    def save(self, directory: Path) -> None:
        """Write `FILE`."""
        matrix = self._similarity
        np.savez(
            directory / self.FILE,
            data=matrix.data,
            indices=matrix.indices,
            indptr=matrix.indptr,
            prior=self._prior,
        )

    @classmethod
    def load(cls, directory: Path, settings: ItemKnnSettings) -> Self:
        """What `save` wrote."""
        model = cls.__new__(cls)
        with np.load(directory / cls.FILE) as file:
            model._prior = file["prior"]
            shape = (len(model._prior), len(model._prior))
            model._similarity = sp.csr_matrix((file["data"], file["indices"], file["indptr"]), shape=shape)
        model.settings = settings
        return model


class Ease:
    """EASE (Steck 2019, equation 8): a linear model that predicts each item from all others, solved exactly.

    With X the users' bags of items `[U, N]` and P = (X'X + l2 I)^-1, B_ij = -P_ij / P_jj off the diagonal and
    0 on it. score(i) = sum over the history's last `window` items j, a places before the newest, of decay^a *
    B_ji. The paper has no decay: it ranks for a bag, not for the moment.  [ours]
    """

    FILE = "ease.npy"

    def __init__(self, weights: np.ndarray, settings: EaseSettings) -> None:
        """`weights` is B, float32 `[N, N]`."""
        self._weights = weights
        self.settings = settings

    @classmethod
    def fit(cls, logs: KnownLogs, settings: EaseSettings | None = None) -> Self:
        """Invert the items' Gram matrix.

        Raises:
            RankerError: it would take more than `settings.memory_gb`.
        """
        settings = settings or EaseSettings()
        items = logs.dataset.items
        needed = cls.needed_gb(items)
        if needed > settings.memory_gb:
            raise RankerError(
                f"ranker.ease needs {needed:.1f} GB for the {items} items of the catalogue, more than "
                f"ranker.ease.memory_gb {settings.memory_gb}: raise it, or set ranker.ease to null"
            )
        users, consumed = logs.interactions()
        bags = sp.csr_matrix(
            (np.ones(len(users)), (users, consumed)), shape=(logs.dataset.users, items), dtype=np.float64
        )
        bags.data[:] = 1.0  # an item consumed twice counts once
        # Everything below is done in place: two matrices of items by items, and no third one.
        gram = np.empty((items, items), order="F")
        for first in range(0, items, _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            gram[:, columns] = (bags.T @ bags[:, columns]).toarray()
        gram[np.diag_indices(items)] += settings.l2
        factor, failed = lapack.dpotrf(gram, overwrite_a=True)
        inverse, failed_too = lapack.dpotri(factor, overwrite_c=True)  # its upper triangle
        assert not failed and not failed_too, "a Gram matrix with a ridge is positive definite"
        diagonal = np.diag(inverse).astype(np.float32)
        weights = inverse.astype(np.float32, order="C")
        for row in range(items):
            weights[row, :row] = weights[:row, row]
        np.fill_diagonal(weights, 0)
        weights /= -diagonal
        return cls(weights, settings)

    @staticmethod
    def needed_gb(items: int) -> float:
        """Memory that fitting takes with so many items."""
        return _BYTES_PER_PAIR * items**2 / 1e9

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[B, N]` for histories of int32 item rows, oldest first."""
        query = _weigh_histories(histories, len(self._weights), self.settings.window, self.settings.decay)
        scores: np.ndarray = query @ self._weights
        return scores

    @property
    def items(self) -> int:
        """N."""
        return len(self._weights)

    def contents(self) -> Iterator[bytes]:
        """The bytes of what was fitted."""
        yield self._weights.tobytes()

    def save(self, directory: Path) -> None:
        """Write `FILE`."""
        np.save(directory / self.FILE, self._weights)

    @classmethod
    def load(cls, directory: Path, settings: EaseSettings) -> Self:
        """What `save` wrote; the processes of one node share its pages."""
        return cls(np.load(directory / cls.FILE, mmap_mode="r"), settings)


def _weigh_histories(histories: Sequence[np.ndarray], items: int, window: int, decay: float) -> sp.csr_matrix:
    """float32 `[B, N]`: decay^a for the item a places before the newest, of the last `window` items."""
    recent = [history[-window:] for history in histories]
    rows = np.repeat(np.arange(len(recent)), [len(history) for history in recent])
    columns = np.concatenate([np.empty(0, dtype=np.int32), *recent])
    weights = np.concatenate([np.empty(0), *(decay ** np.arange(len(h) - 1, -1, -1) for h in recent)])
    return sp.csr_matrix((weights.astype(np.float32), (rows, columns)), shape=(len(recent), items))
