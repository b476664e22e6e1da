"""The baselines of every results table, popularity, co-occurrence with the items just consumed and EASE, and
the lists that anything which scores the catalogue gives.

Baselines are fitted on all logs before validation, as the ranker may be. Items that the user has seen are
scored too: `judge_scores` leaves them out.

Definition: docs/algorithms.md, Baselines.
"""

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.full_catalogue import Scores, ScoresOfUsers, score_catalogue
from sluice.learner.ranker.item_models import Ease, ItemKNN, Popularity
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings
from sluice.learner.ranking_metrics import rank_of


def fit_baselines(dataset: Dataset) -> dict[str, Scores]:
    """By name, `score(histories) -> [B, N]` of each baseline.

    EASE is there where its matrix of items by items takes no more memory than it may by default.
    """
    logs = KnownLogs.until(dataset, "fresh")
    fitted: dict[str, Scores] = {
        "popularity": Popularity.fit(logs).score,
        "itemknn": ItemKNN.fit(logs).score,
    }
    if Ease.needed_gb(dataset.items) <= EaseSettings().memory_gb:
        fitted["ease"] = Ease.fit(logs).score
    return fitted


def judge_scores(
    dataset: Dataset,
    examples: Examples,
    score: Scores | ScoresOfUsers,
    width: int,
    batch: int = 256,
    *,
    whole_history: bool = False,
) -> UserResults:
    """The lists of what scores the whole catalogue, by the rule of `evaluate_policy`.

    Items that the user has seen are left out where the data set says so, and so is what has no finite score.
    Ties stand in order of item row. A list has `width` places, and a target beyond them is not in it.

    Args:
        dataset: histories and targets.
        examples: whom to judge on.
        score: scores the whole catalogue.
        width: W, places of a list.
        batch: examples that are scored at a time.
        whole_history: `score` sees all before the target, not `data.max_history` items, as rankers do.
    """
    ranks, lists = [], []
    for scored in score_catalogue(dataset, examples, score, batch=batch, whole_history=whole_history):
        scores = np.where(scored.rankable, scored.scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        items = np.where(np.isfinite(np.take_along_axis(scores, order, axis=1)), order, -1)
        items = np.pad(items, ((0, 0), (0, width - items.shape[1])), constant_values=-1)
        ranks.append(rank_of(scored.targets, items))
        lists.append(items.astype(np.int32))
    return UserResults(
        users=examples.users,
        positions=examples.positions,
        ranks=np.concatenate(ranks),
        items=np.concatenate(lists),
        invalid=np.zeros(len(examples), dtype=np.int64),
    )


def judge_baselines(dataset: Dataset, examples: Examples, width: int) -> dict[str, UserResults]:
    """The lists of every baseline, which sees the whole history of an example."""
    return {
        name: judge_scores(dataset, examples, score, width, whole_history=True)
        for name, score in fit_baselines(dataset).items()
    }
