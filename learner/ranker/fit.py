"""Fitting the built-in ranker on logged interactions: its parts, and the weights of a stack of them.

The sequence model: each position of a training history predicts the next item against sampled and in-batch
negatives. The loss is a softmax cross-entropy over the distinct items C of the batch and of a uniform sample.
Each score is corrected by the log of the item's chance of being in C (Bengio & Senecal 2008), so that popular
items are not punished for being frequent negatives:

    loss = -log softmax_C( s(x, .) - log q(.) )[y],     q(i) = 1 - (1 - 1/N)^n (1 - p_i)^b

with n uniform negatives of N items, b positives in the batch and p_i the share of item i in the training
part. Each head (`sluice.learner.ranker.heads`) adds its weight times its loss on the outcome of the next
interaction. To the click head's loss belongs what was shown and not taken, too, each item with the state of
the history before it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RankerError
from sluice.catalog.files import sha256_of
from sluice.learner.batches.windows import epoch_batches
from sluice.learner.ranker.heads import DwellHead
from sluice.learner.ranker.item_models import Ease, ItemKNN
from sluice.learner.ranker.known_logs import KnownLogs, ShownItems
from sluice.learner.ranker.model import EnsembleRanker, SequenceRanker, build_member, name_user_attributes
from sluice.learner.ranker.quality import judge_part, judge_ranker
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.ranker.stack import RankerPart, StackedRanker, fit_weights, name_version

Progress = Callable[[int, int, dict[str, float]], None]


def fit_ranker(
    dataset: Dataset, settings: RankerSettings, seed: int, directory: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Fit the built-in ranker and save it to `directory`; returns its quality on validation (`judge_ranker`).

    Of a ranker with several parts, each part's quality and weight is under `parts`.

    Raises:
        RankerError: EASE would take more memory than it may.
    """
    report = progress or (lambda done, total, fields: None)
    ranker = fit_on(logs_of(dataset, settings), settings, seed, report)
    ranker.save(directory)
    quality = judge_ranker(ranker, dataset, "valid", until=settings.until)
    if isinstance(ranker, StackedRanker):
        quality["parts"] = {
            part: {"weight": ranker.weights[part], **judge_part(ranker.parts[part], dataset, "valid")}
            for part in settings.parts
        }
    return quality


def logs_of(dataset: Dataset, settings: RankerSettings) -> KnownLogs:
    """What the built-in ranker of the settings learns from.

    Raises:
        RankerError: no user has impressions, and the settings ask for those who have.
    """
    logs = KnownLogs.until(dataset, settings.until)
    if settings.users == "all":
        return logs
    shown = np.unique(logs.impressions.users)
    if len(shown) == 0:
        raise RankerError(
            "ranker.users is with_impressions, and the log has none until the end of the part "
            f"{settings.until}: set it to all, or bring rows without a click (data.source.unclicked)"
        )
    return logs.without(np.setdiff1d(np.arange(dataset.users), shown))


def fit_on(
    logs: KnownLogs, settings: RankerSettings, seed: int, report: Progress
) -> EnsembleRanker | StackedRanker:
    """The built-in ranker of the settings: the sequence model alone, or a stack.

    Raises:
        RankerError: EASE would take more memory than it may, or nothing can be held out for the weights.
    """
    if settings.parts == ("sequence",):
        return fit_ensemble(logs, settings, settings.ensemble, seed, report)
    return fit_stack(logs, settings, seed, report)


def fit_stack(logs: KnownLogs, settings: RankerSettings, seed: int, report: Progress) -> StackedRanker:
    """The parts that the settings name, and the weights of several.

    Raises:
        RankerError: EASE would take more memory than it may, or nothing can be held out for the weights.
    """
    with_weights = len(settings.parts) > 1
    members = settings.ensemble if settings.sequence else 0
    first = 1 if with_weights and settings.sequence else 0  # one member says what the sequence model is worth

    def report_from(start: int, fitted: int) -> Progress:
        """Progress of `fitted` members, after `start` others, in batches of all members."""

        def told(done: int, total: int, fields: dict[str, float]) -> None:
            each = total // fitted
            report(start * each + done, (first + members) * each, fields)

        return told

    weights = {part: 1.0 for part in settings.parts}
    if with_weights:
        earlier, held_out = logs.hold_out(settings.stack_share)
        parts = fit_parts(earlier, settings, first, seed, report_from(0, first))
        weights = fit_weights(parts, logs.dataset, held_out, np.random.default_rng(seed))
    parts = fit_parts(logs, settings, members, seed, report_from(first, members))
    return StackedRanker(parts, weights, name_version(parts, weights))


def fit_parts(
    logs: KnownLogs, settings: RankerSettings, members: int, seed: int, progress: Progress
) -> dict[str, RankerPart]:
    """The parts that the settings name, by name, fitted on `logs`; the sequence model has so many members."""
    parts: dict[str, RankerPart] = {}
    if settings.sequence:
        parts["sequence"] = fit_ensemble(logs, settings, members, seed, progress)
    if settings.ease is not None:
        parts["ease"] = Ease.fit(logs, settings.ease)
    if settings.itemknn is not None:
        parts["itemknn"] = ItemKNN.fit(logs, settings.itemknn)
    return parts


def fit_ensemble(
    logs: KnownLogs, settings: RankerSettings, members: int, seed: int, progress: Progress
) -> EnsembleRanker:
    """The sequence model: `members` networks from different random weights."""
    fitted = []
    for index in range(members):
        torch.manual_seed(seed * 1000 + index)

        def report(done: int, total: int, fields: dict[str, float], index: int = index) -> None:
            progress(index * total + done, members * total, fields)

        fitted.append(_fit_member(logs, settings, np.random.default_rng((seed, index)), report))
    weights = sha256_of(
        tensor.cpu().numpy().tobytes() for member in fitted for tensor in member.state_dict().values()
    )
    version = weights[:12] + ("" if settings.scores == "next_item" else f"-{settings.scores}")
    dataset = logs.dataset
    return EnsembleRanker(
        fitted,
        version,
        dataset.settings.max_history,
        dataset.reward_column,
        settings.scores,
        name_user_attributes(dataset),
    )


def _fit_member(
    logs: KnownLogs, settings: RankerSettings, generator: np.random.Generator, progress: Progress
) -> SequenceRanker:
    dataset = logs.dataset
    member = build_member(logs, settings)
    popularity = torch.from_numpy(logs.item_shares())
    shown = ShownItems(logs) if "click" in member.heads and len(logs.impressions) else None
    epochs = [
        list(
            epoch_batches(
                dataset,
                lengths=logs.lengths,
                batch_interactions=settings.batch_interactions,
                shuffle_ties=True,
                generator=generator,
            )
        )
        for _ in range(settings.epochs)
    ]
    total = sum(len(batches) for batches in epochs)
    optimizer = torch.optim.AdamW(member.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, round(0.05 * total), total, min_lr_rate=0.02
    )
    average = AveragedModel(member, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    done = 0
    member.train()
    for batches in epochs:
        for rows in batches:
            loss = _loss(member, dataset, rows, popularity, settings, shown)
            loss.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(member)
            done += 1
            progress(done, total, {"loss": float(loss.detach())})
    fitted = cast(SequenceRanker, average.module.eval())
    if "dwell_seconds" in fitted.heads:
        _fit_smearing(fitted, dataset, epochs[-1])
    return fitted


@torch.no_grad()
def _fit_smearing(member: SequenceRanker, dataset: Dataset, batches: list[list[np.ndarray]]) -> None:
    """One more pass over the training part, for what the dwell head takes from its errors."""
    head = member.head("dwell_seconds")
    assert isinstance(head, DwellHead)
    seen = []
    vectors_ND = member.item_vectors()
    for rows in batches:
        items_BT = _items(member, dataset, rows)
        outcomes_BT = _next_outcomes(dataset, rows, "dwell_seconds")
        known_BT = ~outcomes_BT.isnan()
        states_BTD = member.encode(items_BT[:, :-1], vectors_ND, _owners(dataset, rows))
        z_P = head(states_BTD[known_BT], items_BT[:, 1:][known_BT], vectors_ND)
        seen.append(torch.stack([z_P, outcomes_BT[known_BT]]))
    z, outcomes = torch.cat(seen, dim=1)
    if len(outcomes):
        head.fit_smearing(z, outcomes)


def _items(member: SequenceRanker, dataset: Dataset, rows: list[np.ndarray]) -> torch.Tensor:
    """Items `[B, T]` of windows of interaction rows; padding is row N."""
    return nn.utils.rnn.pad_sequence(
        [torch.from_numpy(dataset.sequence[row].astype(np.int64)) for row in rows],
        batch_first=True,
        padding_value=member.items,
    )


def _owners(dataset: Dataset, rows: list[np.ndarray]) -> torch.Tensor:
    """The user int64 `[B]` of each window of interaction rows."""
    first = [int(row[0]) for row in rows]
    return torch.from_numpy(np.searchsorted(dataset.offsets, first, side="right") - 1)


def _next_outcomes(dataset: Dataset, rows: list[np.ndarray], column: str) -> torch.Tensor:
    """The outcome `[B, T]` of the interaction after each, NaN where there is none."""
    outcomes = dataset.outcome(column)
    assert outcomes is not None, f"a head predicts {column}, which no interaction has"
    return nn.utils.rnn.pad_sequence(
        [torch.from_numpy(outcomes[row]) for row in rows], batch_first=True, padding_value=torch.nan
    )[:, 1:]


def _loss(
    member: SequenceRanker,
    dataset: Dataset,
    rows: list[np.ndarray],
    popularity_N: torch.Tensor,
    settings: RankerSettings,
    shown: ShownItems | None = None,
) -> torch.Tensor:
    pad = member.items
    items_BT = _items(member, dataset, rows)
    # Behind the last item of a window something may have been shown, but nothing is predicted.
    inputs_BT, next_BT = items_BT if shown is not None else items_BT[:, :-1], items_BT[:, 1:]
    real_BT = next_BT != pad
    positives_P = next_BT[real_BT]
    vectors_ND = member.item_vectors()
    hidden = torch.rand(inputs_BT.shape) < settings.item_dropout
    states_BTD = member.encode(inputs_BT.masked_fill(hidden, pad), vectors_ND, _owners(dataset, rows))
    states_PD = states_BTD[:, : next_BT.shape[1]][real_BT]
    candidates_C = torch.unique(torch.cat([positives_P, torch.randint(0, pad, (settings.negatives,))]))
    left_out = (1 - 1 / pad) ** settings.negatives
    included_C = 1 - left_out * (1 - popularity_N[candidates_C]) ** len(positives_P)
    scores_PC = (
        member.relevance(states_PD, vectors_ND[candidates_C], member.bias[candidates_C]) - included_C.log()
    )
    loss = nn.functional.cross_entropy(scores_PC, torch.searchsorted(candidates_C, positives_P))
    for column in member.heads:
        head = member.head(column)
        z_P = head(states_PD, positives_P, vectors_ND)
        outcomes_P = _next_outcomes(dataset, rows, column)[real_BT]
        if shown is not None and column == "click":
            windows_M, places_M, items_M = map(torch.from_numpy, shown.in_windows(rows))
            z_M = head(states_BTD[windows_M, places_M], items_M, vectors_ND)
            z_P, outcomes_P = torch.cat([z_P, z_M]), torch.cat([outcomes_P, torch.zeros_like(z_M)])
        loss = loss + settings.head_weights[column] * head.loss(z_P, outcomes_P)
    return loss
