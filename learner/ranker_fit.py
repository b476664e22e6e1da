"""Fitting the built-in ranker on logged interactions, and judging it on validation.

Each position of a training history predicts the next item against sampled and in-batch negatives: softmax cross-entropy
over the distinct items C of the batch and of a uniform sample, each score corrected by the log of the item's chance
of being in C (Bengio & Senecal 2008), so that popular items are not punished for being frequent negatives:

    loss = -log softmax_C( s(x, .) - log q(.) )[y],     q(i) = 1 - (1 - n/N) (1 - p_i)^b

with n uniform negatives of N items, b positives in the batch and p_i the share of item i in the training part.
Where ratings exist the second head adds `rating_weight` times the squared error of the next rating.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from catalog.dataset import Dataset
from learner.metrics import per_user
from learner.ranker import EnsembleRanker, SequenceRanker, build_member
from learner.settings import RankerSettings
from learner.windows import epoch_batches

Progress = Callable[[int, int, dict[str, float]], None]


def fit_ranker(
    dataset: Dataset, settings: RankerSettings, seed: int, directory: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Fit and save the ensemble; returns its quality on validation."""
    members = []
    for index in range(settings.ensemble):
        torch.manual_seed(seed * 1000 + index)

        def report(done: int, total: int, fields: dict[str, float], index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, settings.ensemble * total, fields)

        members.append(_fit_member(dataset, settings, np.random.default_rng((seed, index)), report))
    fingerprint = hashlib.sha256()
    for member in members:
        for tensor in member.state_dict().values():
            fingerprint.update(tensor.cpu().numpy().tobytes())
    ranker = EnsembleRanker(members, fingerprint.hexdigest()[:12], dataset.settings.max_history)
    ranker.save(directory)
    return judge_ranker(ranker, dataset, "valid")


def _fit_member(
    dataset: Dataset, settings: RankerSettings, generator: np.random.Generator, progress: Progress
) -> SequenceRanker:
    member = build_member(dataset, settings)
    popularity = _training_share(dataset)
    rating_mean = training_rating_mean(dataset)
    epochs = [
        list(
            epoch_batches(
                dataset, batch_interactions=settings.batch_interactions, shuffle_ties=True, generator=generator
            )
        )
        for _ in range(settings.epochs)
    ]
    total = sum(len(batches) for batches in epochs)
    optimizer = torch.optim.AdamW(member.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, round(0.05 * total), total, min_lr_rate=0.02)
    average = AveragedModel(member, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    done = 0
    member.train()
    for batches in epochs:
        for rows in batches:
            loss = _loss(member, dataset, rows, popularity, rating_mean, settings)
            loss.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(member)
            done += 1
            progress(done, total, {"loss": float(loss.detach())})
    return average.module


def _loss(
    member: SequenceRanker,
    dataset: Dataset,
    rows: list[np.ndarray],
    popularity_N: torch.Tensor,
    rating_mean: float | None,
    settings: RankerSettings,
) -> torch.Tensor:
    pad = member.items
    items_BT = nn.utils.rnn.pad_sequence(
        [torch.from_numpy(dataset.sequence[row].astype(np.int64)) for row in rows],
        batch_first=True,
        padding_value=pad,
    )
    inputs_BT, next_BT = items_BT[:, :-1], items_BT[:, 1:]
    real_BT = next_BT != pad
    positives_P = next_BT[real_BT]
    vectors_ND = member.item_vectors()
    hidden = torch.rand(inputs_BT.shape) < settings.item_dropout
    states_PD = member.encode(inputs_BT.masked_fill(hidden, pad), vectors_ND)[real_BT]
    candidates_C = torch.unique(torch.cat([positives_P, torch.randint(0, pad, (settings.negatives,))]))
    sampled = 1 - settings.negatives / (pad + settings.negatives)
    included_C = 1 - sampled * (1 - popularity_N[candidates_C]) ** len(positives_P)
    scores_PC = member.relevance(states_PD, vectors_ND[candidates_C], member.bias[candidates_C]) - included_C.log()
    loss = nn.functional.cross_entropy(scores_PC, torch.searchsorted(candidates_C, positives_P))
    if rating_mean is not None and settings.rating_weight > 0:
        ratings_BT = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(np.asarray(dataset.ratings[row])) for row in rows],
            batch_first=True,
            padding_value=torch.nan,
        )
        ratings_P = ratings_BT[:, 1:][real_BT]
        known_P = ~ratings_P.isnan()
        predicted = member.rating(states_PD[known_P], positives_P[known_P], vectors_ND)
        loss = loss + settings.rating_weight * nn.functional.mse_loss(predicted, ratings_P[known_P] - rating_mean)
    return loss


def judge_ranker(ranker: EnsembleRanker, dataset: Dataset, split: str, batch: int = 128) -> dict[str, Any]:
    """AUC, HR and NDCG of ranking the target in the full catalogue, and the rating errors where ratings exist.

    AUC is the mean over users of the share of other rankable items that score below the target. Items already consumed
    are left out of the ranking when the data set says so.
    """
    examples = dataset.examples(split)
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    ranks, auc = [], []
    everything = np.arange(dataset.items, dtype=np.int32)[None]
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        histories = [dataset.history(*pair, dataset.settings.max_history) for pair in part]
        scores = ranker.score(histories, np.repeat(everything, len(part), axis=0))
        for row, pair in zip(scores, part, strict=True):
            target = dataset.target(*pair)
            value = row[target]
            if dataset.settings.exclude_seen:
                row[dataset.seen(*pair)] = np.nan
            rankable = np.count_nonzero(~np.isnan(row)) - 1
            above = np.count_nonzero(row > value)
            ranks.append(above + 1)
            auc.append(1 - above / max(rankable, 1))
    quality: dict[str, Any] = {name: float(value.mean()) for name, value in per_user(np.array(ranks)).items()}
    quality["auc"] = float(np.mean(auc))
    quality["users"] = len(pairs)
    quality["rating"] = _rating_errors(ranker, dataset, pairs)
    return quality


def _rating_errors(ranker: EnsembleRanker, dataset: Dataset, pairs: list[tuple[int, int]]) -> dict[str, float] | None:
    """RMSE of the predicted rating of each target, beside two plain baselines; None where the logs have no ratings."""
    mean = training_rating_mean(dataset)
    if mean is None:
        return None
    rows = np.array([dataset.offsets[user] + position for user, position in pairs])
    actual = np.asarray(dataset.ratings)[rows]
    known = ~np.isnan(actual)
    limit = dataset.settings.max_history
    targets = torch.tensor([dataset.target(*pair) for pair in pairs])
    predicted = np.zeros(len(pairs))
    for member in ranker.members:
        states, vectors = member.last_states([dataset.history(*pair, limit) for pair in pairs], limit)
        with torch.no_grad():
            predicted += (member.rating(states, targets, vectors) + mean).cpu().numpy() / len(ranker.members)
    user_mean = np.array(
        [_mean(dataset.ratings[dataset.offsets[user] : dataset.offsets[user] + at], mean) for user, at in pairs]
    )
    training = _training_rows(dataset)
    by_item = _item_means(dataset.sequence[training], np.asarray(dataset.ratings)[training], dataset.items, mean)
    candidates = {"ranker": predicted, "user_mean": user_mean, "item_mean": by_item[targets.numpy()]}
    return {name: float(np.sqrt(np.mean((value - actual)[known] ** 2))) for name, value in candidates.items()}


def training_rating_mean(dataset: Dataset) -> float | None:
    """Mean rating of the training part; None where the logs have no ratings."""
    if dataset.ratings is None:
        return None
    ratings = np.asarray(dataset.ratings)[_training_rows(dataset)]
    return float(np.nanmean(ratings)) if np.any(~np.isnan(ratings)) else None


def _training_rows(dataset: Dataset) -> np.ndarray:
    """bool `[n]`: the interaction is in the training part."""
    place = np.arange(len(dataset.sequence)) - np.repeat(dataset.offsets[:-1], np.diff(dataset.offsets))
    return place < np.repeat(dataset.training_lengths, np.diff(dataset.offsets))


def _training_share(dataset: Dataset) -> torch.Tensor:
    counts = np.bincount(dataset.sequence[_training_rows(dataset)], minlength=dataset.items)
    return torch.from_numpy((counts / counts.sum()).astype(np.float32))


def _mean(ratings: np.ndarray, default: float) -> float:
    known = ratings[~np.isnan(ratings)]
    return float(known.mean()) if len(known) else default


def _item_means(items: np.ndarray, ratings: np.ndarray, count: int, default: float) -> np.ndarray:
    known = ~np.isnan(ratings)
    sums = np.bincount(items[known], weights=ratings[known], minlength=count)
    numbers = np.bincount(items[known], minlength=count)
    return np.where(numbers > 0, sums / np.maximum(numbers, 1), default)
