"""The baselines of every results table: popularity, co-occurrence with the items just consumed, and EASE.

They are fitted on all logs before validation, as the ranker may be.

Definition: docs/algorithms.md, Baselines.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.learner.ranker.item_models import Ease, ItemKNN, Popularity
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings

Scores = Callable[[Sequence[np.ndarray]], np.ndarray]


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
