"""Scores of the whole catalogue under logged histories, which baselines, the ranker and its parts are judged
by.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples

# From B histories of item rows, oldest first, to scores [B, N]; higher is better.
Scores = Callable[[list[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class ScoresOfUsers:
    """Scores `[B, N]` of what is told, beside the histories, whose they are: users int32 `[B]`."""

    score: Callable[[list[np.ndarray], np.ndarray], np.ndarray]


def score_all_items(
    score: Callable[[list[np.ndarray], np.ndarray, np.ndarray], np.ndarray], items: int
) -> ScoresOfUsers:
    """What scores candidates of users (`contract.ask_score` of a ranker), asked about all N `items`."""
    everything = np.arange(items, dtype=np.int32)[None]
    return ScoresOfUsers(
        lambda histories, users: score(histories, np.repeat(everything, len(histories), axis=0), users)
    )


@dataclass(frozen=True, kw_only=True)
class ScoredExamples:
    """B examples with the scores of all N items."""

    users: np.ndarray  # int32 [B]
    histories: list[np.ndarray]  # B arrays of int32 item rows, as the scores were asked with
    targets: np.ndarray  # int64 [B] item rows
    scores: np.ndarray  # float32 [B, N]
    rankable: np.ndarray  # bool [B, N]: the score is finite, and the item is none to leave out

    def ranks(self) -> np.ndarray:
        """int64 [B], from 1: the target's place among the rankable items, ties in order of item row.

        0 where it is none of them.
        """
        rows = np.arange(len(self.targets))
        own = self.scores[rows, self.targets][:, None]
        earlier = np.arange(self.scores.shape[1]) < self.targets[:, None]
        ahead = self.rankable & ((self.scores > own) | ((self.scores == own) & earlier))
        return np.where(self.rankable[rows, self.targets], 1 + ahead.sum(axis=1), 0)

    def areas(self) -> np.ndarray:
        """float64 [B], the share of the other rankable items that score below the target, ties half."""
        rows = np.arange(len(self.targets))
        own, others = self.scores[rows, self.targets][:, None], self.rankable.copy()
        others[rows, self.targets] = False
        below = (others & (self.scores < own)).sum(axis=1) + (others & (self.scores == own)).sum(axis=1) / 2
        areas: np.ndarray = below / np.maximum(others.sum(axis=1), 1)
        return areas


def score_catalogue(
    dataset: Dataset,
    examples: Examples,
    score: Scores | ScoresOfUsers,
    *,
    batch: int,
    whole_history: bool = False,
) -> Iterator[ScoredExamples]:
    """`batch` examples at a time, in their order.

    Items that the user has had are not rankable where the data set says so, the target too if it is one.

    Args:
        dataset: histories and targets.
        examples: whom to score for.
        score: scores the whole catalogue.
        batch: examples that are scored at a time.
        whole_history: `score` sees everything before the target. A ranker sees `data.max_history` items.
    """
    limit = None if whole_history else dataset.settings.max_history
    for start in range(0, len(examples), batch):
        users, positions = (part[start : start + batch] for part in (examples.users, examples.positions))
        pairs = list(zip(users.tolist(), positions.tolist(), strict=True))
        histories = [dataset.history(*pair, limit) for pair in pairs]
        given = score.score(histories, users) if isinstance(score, ScoresOfUsers) else score(histories)
        scores = np.asarray(given, dtype=np.float32)
        rankable = np.isfinite(scores)
        if dataset.settings.exclude_seen:
            for row, pair in zip(rankable, pairs, strict=True):
                row[dataset.seen(*pair)] = False
        targets = np.asarray([dataset.target(*pair) for pair in pairs], dtype=np.int64)
        yield ScoredExamples(
            users=users, histories=histories, targets=targets, scores=scores, rankable=rankable
        )
