"""A ranker that is right about some users and wrong about others, to see what a gate is worth.

It is EASE and ItemKNN, stacked. For a share of users, drawn by seed, it scores an item as it would score
another one: a fixed permutation of the catalogue. So it is as sure of itself there as anywhere else.

    ranker: {use: "sluice.learner.ranker.wrong_for_some:WrongForSome", options: {share: 0.5}}
"""

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.fit import fit_stack
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings, RankerSettings


class WrongForSome:
    """A ranker as `sluice.learner.ranker.contract.Ranker` has it.

    A ranker is asked about histories, not about users. So it knows the histories of all positions of those
    users that it is wrong about; of others it is right.
    """

    def __init__(
        self,
        dataset: Dataset,
        share: float = 0.5,
        seed: int = 0,
        until: str = "fresh",
        without_users: np.ndarray | None = None,
    ) -> None:
        """Fit it: some seconds for MovieLens-100K.

        Args:
            dataset: with the logs that it learns from, until the end of the part `until`.
            share: of the users that it is wrong about, 0 to 1.
            seed: decides which users, and which items stand for which.
            until: a part of `sluice.catalog.data.splits.SPLITS`.
            without_users: rows of users that it does not learn from. It is wrong about the same users.

        Raises:
            RankerError: `share` is no share.
        """
        if not 0 <= share <= 1:
            raise RankerError(f"ranker.options.share {share} is no share of users: give a number from 0 to 1")
        settings = RankerSettings(sequence=False, ease=EaseSettings(), itemknn=ItemKnnSettings())
        logs = KnownLogs.until(dataset, until)
        if without_users is not None:
            logs = logs.without(without_users)
        self._right = fit_stack(logs, settings, seed, lambda *_: None)
        generator = np.random.default_rng(seed)
        self.wrong_users = generator.permutation(dataset.users)[: round(share * dataset.users)]
        self._stands_for = generator.permutation(dataset.items).astype(np.int32)
        self._wrong_histories = _histories_of(dataset, self.wrong_users)
        self.version = f"{self._right.version}-wrong-{share}-{seed}"

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """See `sluice.learner.ranker.contract.Ranker.score`."""
        wrong = np.array([_key(history) in self._wrong_histories for history in histories], dtype=bool)
        items = len(self._stands_for)
        known = wrong[:, None] & (candidates >= 0) & (candidates < items)
        asked = np.where(known, self._stands_for[np.clip(candidates, 0, items - 1)], candidates)
        return self._right.score(histories, asked)


def _histories_of(dataset: Dataset, users: np.ndarray) -> set[bytes]:
    limit = dataset.settings.max_history
    return {
        _key(dataset.history(user, position, limit))
        for user in users.tolist()
        for position in range(1, len(dataset.items_of(user)))
    }


def _key(history: np.ndarray) -> bytes:
    return np.asarray(history, dtype=np.int32).tobytes()
