"""How good a ranker is on held-out users: ranking, calibration, and the errors of its heads.

Relevance is calibrated as a probability: the softmax of a user's scores over the rankable items. The events
are each user's `TOP` likeliest items; what is observed is whether the item is the true next one. Over the
whole catalogue nearly every probability is nearly zero, and any ranker would look calibrated. The likeliest
item alone, as for classifiers (Guo et al. 2017), says nothing of the candidates that a policy proposes.
[ours]

A head is judged on its own scale (`sluice.learner.ranker.heads`): stars, click probability, log(1 + seconds).
Its root mean squared error is compared with two plain baselines, the user's past mean and the item's mean in
training. The click head is judged on what was shown and not taken, too.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.splits import SPLITS, Impressions, positions_of
from sluice.learner.full_catalogue import score_all_items, score_catalogue
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
        HR, NDCG, MRR and AUC of ranking the target in the full catalogue; `by_exposure`; `users`, the
        number of examples; `relevance` and, for each head with an outcome to judge it on, `heads.<column>`:
        `ece`, `events` and `curve`, for heads with `rmse` beside it.

    AUC is the mean over users of the share of other rankable items that score below the target, ties half.
    Items already consumed are not rankable when the data set says so: such a target has no rank.
    """
    examples = dataset.examples(split)
    ranks, areas, likely, happened = [], [], [], []
    outcomes: list[dict[str, np.ndarray]] = []
    score = score_all_items(partial(score_part, ranker), dataset.items)
    for scored in score_catalogue(dataset, examples, score, batch=batch):
        outcomes.append(ranker.expected_outcomes(scored.histories, scored.targets, scored.users))
        ranks.append(scored.ranks())
        areas.append(scored.areas())
        for row, target in zip(np.where(scored.rankable, scored.scores, np.nan), scored.targets, strict=True):
            items, probabilities = likeliest_items(row)
            likely.append(probabilities)
            happened.append(items == target)
    auc = np.concatenate(areas)
    metrics = per_user(np.concatenate(ranks))
    quality: dict[str, Any] = {name: float(value.mean()) for name, value in metrics.items()}
    quality["auc"] = float(auc.mean())
    quality["by_exposure"] = _by_exposure(
        dataset, examples, {"auc": auc, "hr@10": metrics["hr@10"]}, KnownLogs.until(dataset, until)
    )
    quality["users"] = len(examples)
    quality["relevance"] = calibration_curve(
        np.concatenate(likely), np.concatenate(happened).astype(float)
    ).as_json()
    quality["heads"] = {}
    for column in ranker.heads:
        predicted = np.concatenate([part_outcomes[column] for part_outcomes in outcomes])
        judged = _judge_head(ranker, dataset, column, split, predicted, until)
        if judged is not None:
            quality["heads"][column] = judged
    return quality


def judge_part(part: RankerPart, dataset: Dataset, split: str, *, batch: int = 128) -> dict[str, float]:
    """HR, NDCG and MRR of one part of a stack by itself."""
    score = score_all_items(partial(score_part, part), dataset.items)
    scored = score_catalogue(dataset, dataset.examples(split), score, batch=batch)
    judged = per_user(np.concatenate([batch_scores.ranks() for batch_scores in scored]))
    return {name: float(value.mean()) for name, value in judged.items()}


def _by_exposure(
    dataset: Dataset, examples: Examples, judged: dict[str, np.ndarray], logs: KnownLogs
) -> list[dict[str, float]]:
    """By decile of items, the least shown in `logs` first: times that an item was shown, examples whose
    target is one of them, and the means of what is `judged`, each `[n]`.

    A decile without examples is left out.
    """
    counts = logs.exposures()
    decile_of = np.empty(dataset.items, dtype=np.int64)
    decile_of[np.argsort(counts, kind="stable")] = np.arange(dataset.items) * DECILES // dataset.items
    targets = dataset.sequence[dataset.offsets[examples.users] + examples.positions]
    return [
        {
            "decile": decile + 1,
            "exposure": float(counts[decile_of == decile].mean()),
            "examples": int(chosen.sum()),
            **{name: float(values[chosen].mean()) for name, values in judged.items()},
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


@dataclass(frozen=True, kw_only=True)
class LoggedOutcomes:
    """The outcomes that a head is fitted to and judged on: n interactions, then the impressions, if any."""

    users: np.ndarray  # int [n]
    items: np.ndarray  # int [n]
    positions: np.ndarray  # int [n], how many interactions of the user came before
    outcomes: np.ndarray  # float32 [n], on the scale of the head; NaN where unknown
    fitted: np.ndarray  # bool [n], known to the ranker

    @classmethod
    def of(cls, dataset: Dataset, outcomes: np.ndarray, until: str, *, impressions: bool) -> Self:
        """`outcomes` are those of all interactions; the ranker learned from the logs until `until`."""
        columns = {
            "users": np.repeat(np.arange(dataset.users), np.diff(dataset.offsets)),
            "items": dataset.sequence,
            "positions": positions_of(dataset.offsets),
            "outcomes": outcomes,
            "fitted": dataset.known_until(until),
        }
        if impressions:
            shown = dataset.impressions("test")
            missed = vars(shown) | {
                "outcomes": np.zeros(len(shown), dtype=np.float32),
                "fitted": shown.parts <= SPLITS.index(until),
            }
            columns = {name: np.concatenate([columns[name], missed[name]]) for name in columns}
        return cls(**columns)


def _judge_head(
    ranker: EnsembleRanker | StackedRanker,
    dataset: Dataset,
    column: str,
    split: str,
    predicted: np.ndarray,
    until: str,
) -> dict[str, Any] | None:
    """Calibration and errors of the predictions of a split's examples `[n]`; None where no outcome is known.

    For clicks, the impressions of the split are predicted here. One without a history is left out, as a first
    interaction is no example.
    """
    values = torch.from_numpy(np.array(dataset.outcome(column)))  # a copy: torch wants it writable
    outcomes = ranker.members[0].head(column).transform(values).numpy()
    log = LoggedOutcomes.of(dataset, outcomes, until, impressions=column == "click")
    examples = dataset.examples(split)
    rows = dataset.offsets[examples.users] + examples.positions
    if column == "click":
        shown = dataset.impressions("test")
        missed = np.flatnonzero((shown.parts == SPLITS.index(split)) & (shown.positions > 0))
        predicted = np.concatenate([predicted, _predict_clicks(ranker, dataset, shown.where(missed))])
        rows = np.concatenate([rows, len(outcomes) + missed])
    actual = log.outcomes[rows].astype(np.float64)
    known = ~np.isnan(actual)
    if not known.any():
        return None
    rivals = {"ranker": predicted, **plain_baselines(log, rows)}
    errors = {name: float(np.sqrt(np.mean((value - actual)[known] ** 2))) for name, value in rivals.items()}
    return {"rmse": errors, **calibration_curve(predicted[known], actual[known]).as_json()}


def _predict_clicks(
    ranker: EnsembleRanker | StackedRanker, dataset: Dataset, shown: Impressions, batch: int = 1024
) -> np.ndarray:
    """The probability of a click of each impression, float64 `[m]`."""
    pairs = list(zip(shown.users.tolist(), shown.positions.tolist(), strict=True))
    limit = dataset.settings.max_history
    parts = [np.empty(0)]
    for start in range(0, len(pairs), batch):
        histories = [dataset.history(*pair, limit) for pair in pairs[start : start + batch]]
        rows = slice(start, start + batch)
        parts.append(ranker.expected_outcomes(histories, shown.items[rows], shown.users[rows])["click"])
    return np.concatenate(parts)


def plain_baselines(log: LoggedOutcomes, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Two plain predictions of the outcomes at `rows` `[n]` of the log, float64 `[n]` each.

    They are the mean of the user's outcomes behind fewer interactions and the mean of the item's that the
    ranker knows; a mean over nothing is that of all that it knows.
    """
    has_one = ~np.isnan(log.outcomes)
    fitted = has_one & log.fitted
    everybody = float(log.outcomes[fitted].mean())
    items = int(log.items.max()) + 1
    counts = np.bincount(log.items[fitted], minlength=items)
    sums = np.bincount(log.items[fitted], weights=log.outcomes[fitted], minlength=items)
    by_item = np.where(counts > 0, sums / np.maximum(counts, 1), everybody)
    # Outcomes in order of user and position, and their sums up to each.
    width = int(log.positions.max()) + 1
    places = log.users[has_one].astype(np.int64) * width + log.positions[has_one]
    order = np.argsort(places, kind="stable")
    sums = np.append(0, np.cumsum(log.outcomes[has_one][order], dtype=np.float64))
    user_from = log.users[rows].astype(np.int64) * width
    first, end = (np.searchsorted(places[order], key) for key in (user_from, user_from + log.positions[rows]))
    by_user = np.where(end > first, (sums[end] - sums[first]) / np.maximum(end - first, 1), everybody)
    return {"user_mean": by_user, "item_mean": by_item[log.items[rows]]}
