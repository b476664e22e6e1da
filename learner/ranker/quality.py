"""How good a ranker is on held-out users: ranking, calibration, and the errors of its heads.

Relevance is calibrated as a probability: the softmax of a user's scores over the rankable items. The events
are each user's `TOP` likeliest items; what is observed is whether the item is the true next one. Over the
whole catalogue nearly every probability is nearly zero, and any ranker would look calibrated. The likeliest
item alone, as for classifiers (Guo et al. 2017), says nothing of the candidates that a policy proposes.
[ours]

A head is judged on its own scale (`sluice.learner.ranker.heads`): stars, click probability, log(1 + seconds).
Its root mean squared error is compared with two plain baselines, the user's past mean and the item's mean in
training.
"""

from typing import Any

import numpy as np
import torch

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.learner.full_catalogue import Scores, score_catalogue
from sluice.learner.ranker.calibration import calibration_curve
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.model import EnsembleRanker
from sluice.learner.ranker.stack import RankerPart, StackedRanker, score_part
from sluice.learner.ranking_metrics import per_user

TOP = 10
DECILES = 10


def judge_ranker(
    ranker: EnsembleRanker | StackedRanker, dataset: Dataset, split: str, *, until: str, batch: int = 128
) -> dict[str, Any]:
    """The ranker's quality on the examples of a split, `batch` users at a time.

    Returns:
        HR, NDCG, MRR and AUC of ranking the target in the full catalogue; `auc_by_exposure`; `users`, the
        number of examples; `relevance` and, for each head with an outcome to judge it on, `heads.<column>`:
        `ece`, `events` and `curve`, for heads with `rmse` beside it.

    AUC is the mean over users of the share of other rankable items that score below the target, ties half.
    Items already consumed are not rankable when the data set says so: such a target has no rank.
    """
    examples = dataset.examples(split)
    ranks, areas, likely, happened = [], [], [], []
    outcomes: list[dict[str, np.ndarray]] = []
    for scored in score_catalogue(dataset, examples, _catalogue_scores(ranker, dataset.items), batch=batch):
        outcomes.append(ranker.expected_outcomes(scored.histories, scored.targets))
        ranks.append(scored.ranks())
        areas.append(scored.areas())
        for row, target in zip(np.where(scored.rankable, scored.scores, np.nan), scored.targets, strict=True):
            items, probabilities = likeliest_items(row)
            likely.append(probabilities)
            happened.append(items == target)
    auc = np.concatenate(areas)
    quality: dict[str, Any] = _mean_metrics(np.concatenate(ranks))
    quality["auc"] = float(auc.mean())
    quality["auc_by_exposure"] = _by_exposure(dataset, examples, auc, until)
    quality["users"] = len(examples)
    quality["relevance"] = calibration_curve(
        np.concatenate(likely), np.concatenate(happened).astype(float)
    ).as_json()
    quality["heads"] = {}
    for column in ranker.heads:
        predicted = np.concatenate([part_outcomes[column] for part_outcomes in outcomes])
        judged = _judge_head(ranker, dataset, column, examples.users, examples.positions, predicted, until)
        if judged is not None:
            quality["heads"][column] = judged
    return quality


def judge_part(part: RankerPart, dataset: Dataset, split: str, *, batch: int = 128) -> dict[str, float]:
    """HR, NDCG and MRR of one part of a stack by itself."""
    score = _catalogue_scores(part, dataset.items)
    scored = score_catalogue(dataset, dataset.examples(split), score, batch=batch)
    return _mean_metrics(np.concatenate([part.ranks() for part in scored]))


def _catalogue_scores(ranker: RankerPart | StackedRanker, items: int) -> Scores:
    everything = np.arange(items, dtype=np.int32)[None]
    return lambda histories: score_part(ranker, histories, np.repeat(everything, len(histories), axis=0))


def _mean_metrics(ranks: np.ndarray) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in per_user(ranks).items()}


def _by_exposure(dataset: Dataset, examples: Examples, auc: np.ndarray, until: str) -> list[dict[str, float]]:
    """By decile of items, the least consumed first: consumptions per item, examples, and their mean AUC.

    A decile without examples is left out.
    """
    counts = KnownLogs.until(dataset, until).item_counts()
    decile_of = np.empty(dataset.items, dtype=np.int64)
    decile_of[np.argsort(counts, kind="stable")] = np.arange(dataset.items) * DECILES // dataset.items
    targets = dataset.sequence[dataset.offsets[examples.users] + examples.positions]
    return [
        {
            "decile": decile + 1,
            "exposure": float(counts[decile_of == decile].mean()),
            "examples": int(chosen.sum()),
            "auc": float(auc[chosen].mean()),
        }
        for decile in range(DECILES)
        if (chosen := decile_of[targets] == decile).any()
    ]


def likeliest_items(scores: np.ndarray, top: int = TOP) -> tuple[np.ndarray, np.ndarray]:
    """The `top` likeliest items of one user, and their probabilities; both at most `[top]`.

    The probabilities are the softmax of those of the scores `[N]` that are not NaN.
    """
    known = ~np.isnan(scores)
    weights = np.where(known, np.exp(scores.astype(np.float64) - np.nanmax(scores)), 0.0)
    items = np.argsort(-weights, kind="stable")[: min(top, np.count_nonzero(known))]
    return items, weights[items] / weights.sum()


def _judge_head(
    ranker: EnsembleRanker | StackedRanker,
    dataset: Dataset,
    column: str,
    users: np.ndarray,
    positions: np.ndarray,
    predicted: np.ndarray,
    until: str,
) -> dict[str, Any] | None:
    """Calibration and errors of the predictions `[n]`; None where no outcome is known."""
    logged = torch.from_numpy(np.array(dataset.outcome(column)))  # a copy: torch wants it writable
    outcomes: np.ndarray = ranker.members[0].head(column).transform(logged).numpy()
    actual = outcomes[dataset.offsets[users] + positions].astype(np.float64)
    known = ~np.isnan(actual)
    if not known.any():
        return None
    rivals = {"ranker": predicted, **plain_baselines(dataset, outcomes, users, positions, until)}
    errors = {name: float(np.sqrt(np.mean((value - actual)[known] ** 2))) for name, value in rivals.items()}
    return {"rmse": errors, **calibration_curve(predicted[known], actual[known]).as_json()}


def plain_baselines(
    dataset: Dataset, outcomes: np.ndarray, users: np.ndarray, positions: np.ndarray, until: str
) -> dict[str, np.ndarray]:
    """Two plain predictions, float64 `[n]` each, for the n interactions at `positions` of `users`.

    They are the mean of the user's past outcomes and the mean of the item's until the end of the part
    `until`; a mean over nothing is that of all users until then. `outcomes` `[all interactions]` has NaN
    where nothing is known.
    """
    training = dataset.known_until(until) & ~np.isnan(outcomes)
    everybody = float(outcomes[training].mean())
    items, known = dataset.sequence[training], outcomes[training]
    counts = np.bincount(items, minlength=dataset.items)
    sums = np.bincount(items, weights=known, minlength=dataset.items)
    by_item = np.where(counts > 0, sums / np.maximum(counts, 1), everybody)
    starts = dataset.offsets[users]
    pasts = [outcomes[start : start + position] for start, position in zip(starts, positions, strict=True)]
    by_user = [float(np.nanmean(past)) if (~np.isnan(past)).any() else everybody for past in pasts]
    return {"user_mean": np.array(by_user), "item_mean": by_item[dataset.sequence[starts + positions]]}
