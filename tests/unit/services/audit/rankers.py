"""Rankers whose worth is known, for the logs of `conftest.py`: everybody takes the next item but few."""

import numpy as np

from sluice.learner.ranker.known_logs import KnownLogs


class _Ranker:
    version = "planted"

    def __init__(self, dataset, without_users=None):
        self.items = dataset.items
        self.number = np.array([int(name[1:]) for name in dataset.item_ids])
        assert KnownLogs.until(dataset, "fresh").item_counts().sum() > 0

    def score(self, histories, candidates):
        scores = np.stack(
            [
                self.of(history, items)
                for history, items in zip(histories, np.maximum(candidates, 0), strict=True)
            ]
        )
        return np.where(candidates < 0, np.nan, scores).astype(np.float32)


class Knows(_Ranker):
    """Likes what comes soon after the last item."""

    def of(self, history, items):
        return -((self.number[items] - self.number[history[-1]] - 1) % self.items)


class Guesses(_Ranker):
    """As good as a coin: a fixed order for each history."""

    def of(self, history, items):
        order = np.random.default_rng(history.tolist()).random(self.items)
        return order[items]


class Alike(_Ranker):
    """Scores everything alike; it cannot leave users out."""

    def __init__(self, dataset):
        super().__init__(dataset)

    def of(self, history, items):
        return np.zeros(len(items))
