"""Logs and rankers by which trust can be worked out by hand."""

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.settings import DataSettings


class LogsInMemory(Dataset):
    """Sequences of item rows, one a user; the last `unknown` of each lie behind the fresh part."""

    def __init__(self, *sequences, items, max_history=50, unknown=0):
        self.settings = DataSettings(max_history=max_history)
        lengths = [len(sequence) for sequence in sequences]
        self.sequence = np.concatenate(sequences).astype(np.int32)
        self.offsets = np.cumsum([0, *lengths])
        self.codes = np.zeros((items, 1), dtype=np.int32)
        self.user_ids = [f"user-{number}" for number in range(len(sequences))]
        self._labels = np.concatenate(
            [np.where(np.arange(length) < length - unknown, 1, 3) for length in lengths]
        ).astype(np.int8)


class TableRanker:
    """Scores item i as `scores[i]`, whatever the history; keeps what it was asked."""

    def __init__(self, scores, version="table"):
        self.scores, self.version = np.asarray(scores, dtype=np.float32), version
        self.asked = []

    def score(self, histories, candidates):
        self.asked += [
            (tuple(h.tolist()), tuple(c.tolist())) for h, c in zip(histories, candidates, strict=True)
        ]
        return np.where(candidates < 0, np.nan, self.scores[np.maximum(candidates, 0)]).astype(np.float32)

    def asked_about(self, item):
        """The history and the others that one item was placed under; it was asked once."""
        (question,) = [(history, row[1:]) for history, row in self.asked if row[0] == item]
        return question


def prompts(*pairs):
    users, positions = np.asarray(pairs, dtype=np.int32).reshape(-1, 2).T
    return Examples(users=users, positions=positions)
