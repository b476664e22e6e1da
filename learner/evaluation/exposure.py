"""What each example counts in metrics that do not favour the logger, and which metric chooses a checkpoint.

A log holds what was clicked of what was shown. So a hit on what the logger likes to show is easy, and whoever
imitates the logger looks best. An example counts the more, the less likely its target was shown and looked
at:

    w = min(1 / (propensity x examination), clip),    examination = 1 / sqrt(slate position)

Definition: docs/algorithms.md, Weighted metrics.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.errors import DataError
from sluice.learner.ranking_metrics import effective_size, per_user
from sluice.learner.settings import EvaluationSettings

WEIGHTED = "ips_"  # before the name of a metric that is weighted by inverse propensity
FEWEST_EFFECTIVE = 100.0  # with weights that tell less than so many equal examples, auto is logged
_CHOOSING = ("hr@10", "ndcg@10")  # of two checkpoints: the first, and among equals the second


def weigh_examples(
    dataset: Dataset, users: np.ndarray, positions: np.ndarray, settings: EvaluationSettings
) -> np.ndarray | None:
    """The weights of n examples, float64 `[n]`, at most `evaluation.propensity_clip`.

    An example whose propensity or slate position is not known has the weight 0. A data set without any slate
    position says nothing of examination, which then counts as 1.

    Args:
        dataset: has the propensities.
        users: int `[n]`, whose each example is.
        positions: int `[n]`, of the target in the user's sequence.
        settings: clip, and the model of examination.

    Returns:
        None where no example has a weight.
    """
    if dataset.propensities is None:
        return None
    rows = dataset.offsets[users] + positions
    chances = dataset.propensities[rows].astype(np.float64)
    if dataset.slate_positions is not None and settings.examination == "inverse_sqrt":
        chances /= np.sqrt(dataset.slate_positions[rows].astype(np.float64))
    known = ~np.isnan(chances)
    if not known.any():
        return None
    weights = np.zeros(len(rows))
    weights[known] = np.minimum(1 / chances[known], settings.propensity_clip)
    return weights


def describe_weights(dataset: Dataset, settings: EvaluationSettings) -> dict[str, Any]:
    """How `weigh_examples` weighs: `clip`, and the model of `examination`, none without slate positions."""
    looked_at = settings.examination if dataset.slate_positions is not None else "none"
    return {"clip": settings.propensity_clip, "examination": looked_at}


def weighted_means(ranks: np.ndarray, width: int | None, weights: np.ndarray) -> dict[str, float]:
    """The self-normalised means of all metrics of ranks `[n]` in lists of `width` places, as `ips_<metric>`.

    Beside them `ips_examples`, those of a weight above 0, and `effective_examples`, how many equally weighted
    ones would tell as much: (sum of w)^2 / sum of w^2.
    """
    means = {
        f"{WEIGHTED}{name}": float(np.average(values, weights=weights))
        for name, values in per_user(ranks, width).items()
    }
    return means | {
        f"{WEIGHTED}examples": float(np.count_nonzero(weights)),
        "effective_examples": effective_size(weights),
    }


def decides_weighted(summary: Mapping[str, float], settings: EvaluationSettings) -> bool:
    """Whether the weighted metrics of examples decide, by their summary (`UserResults.summary`).

    `select_by: auto` asks for `FEWEST_EFFECTIVE` effective examples: the weighted mean of fewer is chance.
    """
    has_weights = all(f"{WEIGHTED}{name}" in summary for name in _CHOOSING)
    if settings.select_by == "auto":
        return has_weights and summary["effective_examples"] >= FEWEST_EFFECTIVE
    return has_weights and settings.select_by == "weighted"


def choosing_metrics(summary: Mapping[str, float], settings: EvaluationSettings) -> tuple[str, ...]:
    """The names of the metrics that say which of two checkpoints is better, the first before the second.

    Args:
        summary: of a validation (`UserResults.summary`).
        settings: `select_by`.

    Raises:
        DataError: they are to be weighted, and no validation example has a propensity.
    """
    weighted = decides_weighted(summary, settings)
    if settings.select_by == "weighted" and not weighted:
        raise _no_weights()
    return tuple(WEIGHTED * weighted + name for name in _CHOOSING)


def check_choice(dataset: Dataset, examples: Examples, settings: EvaluationSettings) -> None:
    """Whether the validation `examples` have what `select_by` asks for, before anything is trained.

    Raises:
        DataError: checkpoints are to be chosen by weights, and no example has a propensity.
    """
    if settings.select_by != "weighted":
        return
    if weigh_examples(dataset, examples.users, examples.positions, settings) is None:
        raise _no_weights()


def _no_weights() -> DataError:
    return DataError(
        "evaluation.select_by is weighted, and no validation example has a propensity: set it to auto or "
        "logged, or log propensities and name them in data.source.columns.propensity"
    )


def choosing_score(summary: Mapping[str, float], settings: EvaluationSettings) -> tuple[float, float]:
    """By what a checkpoint is compared with others, of its validation; see `choosing_metrics`."""
    first, second = choosing_metrics(summary, settings)
    return summary[first], summary[second]
