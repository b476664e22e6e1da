"""From rollout groups, or from logged examples alone, to the learner's tensors."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import DataError, RunError
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.rollout_group import RolloutGroup, decode_group
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.batches.strata import PopularityCuts

if TYPE_CHECKING:
    from sluice.catalog.data.dataset import Dataset, Examples


def collate_groups(
    groups: Sequence[pa.RecordBatch],
    dataset: "Dataset",
    vocabulary: Vocabulary,
    decoding: Decoding,
    cuts: PopularityCuts | None = None,
) -> GroupBatch:
    """One batch of B groups, which were drawn by `decoding`.

    `cuts` are those of the data set, for the metrics by popularity.

    Raises:
        DataError: a record is no rollout group of this release, or the groups differ in K or L, in how they
            were drawn, in whether the ranker knew the spread or the values, or in whether trust was measured.
        RunError: a constrained group holds a candidate that its decoding forbade, or its catalogue is not
            known here.
    """
    decoded = [decode_group(record) for record in groups]
    shapes = {group.candidate_tokens.shape for group in decoded}
    if len(shapes) != 1:
        raise DataError(
            f"a batch needs groups of one shape [K, L], got {sorted(shapes)}: one decoding per queue"
        )
    targets = np.asarray([group.target_item for group in decoded], dtype=np.int64)
    target_BL = vocabulary.item_tokens[targets]
    candidates_BKL = np.stack([group.candidate_tokens for group in decoded]).astype(np.int64)
    history_BT, lengths_B = collate_histories([group.history for group in decoded], vocabulary)
    return GroupBatch(
        history_BT=history_BT,
        history_lengths_B=lengths_B,
        target_BL=torch.from_numpy(target_BL),
        candidates_BKL=torch.from_numpy(candidates_BKL),
        behaviour_log_probs_BKL=_float32(np.stack([group.behaviour_log_probs for group in decoded])),
        candidate_items_BK=torch.from_numpy(np.stack([g.candidate_items for g in decoded]).astype(np.int64)),
        target_items_B=torch.from_numpy(targets),
        candidate_scores_BK=_float32(np.stack([group.candidate_scores for group in decoded])),
        target_scores_B=_float32(np.asarray([group.target_score for group in decoded])),
        candidate_spread_BK=_if_known(decoded, "target_spread", "candidate_spread"),
        target_spread_B=_if_known(decoded, "target_spread", "target_spread"),
        candidate_values_BK=_if_known(decoded, "target_value", "candidate_values"),
        target_values_B=_if_known(decoded, "target_value", "target_value"),
        trust_B=_trust(decoded),
        candidate_popularity_BK=_popularity(decoded, dataset),
        logged_rewards_B=_logged_rewards(
            dataset, np.asarray([g.user for g in decoded]), np.asarray([g.position for g in decoded])
        ),
        distractor_scores_BJ=_distractor_scores(decoded),
        allowed_BSLV=_allowed(decoded, target_BL, candidates_BKL, vocabulary)
        if decoding.constrained
        else None,
        decoding=decoding,
        popularity_cuts=cuts,
        inclusion_log_probs_BK=_inclusion(decoded),
    )


def collate_logged(
    dataset: "Dataset",
    examples: "Examples",
    vocabulary: Vocabulary,
    gaps: Gaps = NO_GAPS,
    numbers: Iterable[int] | None = None,
) -> LoggedBatch:
    """The histories and targets of logged examples; the histories have the `gaps` of prompts with these
    `numbers`.
    """
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    limit = dataset.settings.max_history
    histories = [
        gaps.cut(dataset.history(user, at, limit), number)
        for (user, at), number in zip(pairs, numbers or range(len(pairs)), strict=True)
    ]
    history_BT, lengths_B = collate_histories(histories, vocabulary)
    targets = np.asarray([dataset.target(user, at) for user, at in pairs], dtype=np.int64)
    return LoggedBatch(
        history_BT=history_BT,
        history_lengths_B=lengths_B,
        target_BL=torch.from_numpy(vocabulary.item_tokens[targets]),
        logged_rewards_B=_logged_rewards(dataset, examples.users, examples.positions),
    )


def _logged_rewards(dataset: "Dataset", users: np.ndarray, positions: np.ndarray) -> torch.Tensor | None:
    rewards = dataset.logged_rewards(users, positions)
    return None if rewards is None else _float32(rewards)


def _if_known(groups: Sequence[RolloutGroup], told_by: str, name: str) -> torch.Tensor | None:
    """A field of all groups; None where the ranker did not know it, which NaN of `told_by` says."""
    unknown = np.isnan([getattr(group, told_by) for group in groups])
    if unknown.all():
        return None
    if unknown.any():
        raise DataError(
            f"the ranker gave a {told_by} to {(~unknown).sum()} of {len(groups)} groups of a batch: it must "
            f"give one to all prompts or to none, and all ranker actors must run one version"
        )
    return _float32(np.stack([getattr(group, name) for group in groups]))


def _trust(groups: Sequence[RolloutGroup]) -> torch.Tensor | None:
    """float32 `[B]`, None where nobody measured it."""
    known = [group.trust for group in groups if group.trust is not None]
    if not known:
        return None
    if len(known) < len(groups):
        raise DataError(
            f"{len(known)} of {len(groups)} groups of a batch carry the trust of objective.gate.trust, the "
            "others none: all ranker actors must run with one config"
        )
    return _float32(np.asarray(known))


def _popularity(groups: Sequence[RolloutGroup], dataset: "Dataset") -> torch.Tensor:
    items_BK, shares = np.stack([group.candidate_items for group in groups]), dataset.item_shares("fresh")
    # A later version of the catalogue has items that are not in the data set, and so in none of its
    # interactions.
    known_BK = shares.take(items_BK, mode="clip")
    return _float32(np.select([items_BK < 0, items_BK >= len(shares)], [np.nan, 0.0], known_BK))


def collate_histories(
    histories: Sequence[np.ndarray], vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """Item rows, oldest first, as right-padded prompts int64 `[B, T]`, and their lengths in tokens `[B]`."""
    layout: TokenLayout = vocabulary.layout
    prompts = [layout.prompt(vocabulary.item_tokens, history) for history in histories]
    lengths_B = np.asarray([len(prompt) for prompt in prompts], dtype=np.int64)
    history_BT = np.full((len(prompts), lengths_B.max()), layout.pad, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        history_BT[row, : len(prompt)] = prompt
    return torch.from_numpy(history_BT), torch.from_numpy(lengths_B)


def _inclusion(groups: Sequence[RolloutGroup]) -> torch.Tensor | None:
    """float32 `[B, K]`, None where the groups were not drawn without replacement."""
    with_them = sum(len(group.inclusion_log_probs) > 0 for group in groups)
    if with_them == 0:
        return None
    if with_them < len(groups):
        raise DataError(
            f"{with_them} of {len(groups)} groups carry inclusion probabilities (stochastic beams), the "
            f"others none: one decoding per queue"
        )
    return _float32(np.stack([group.inclusion_log_probs for group in groups]))


def _distractor_scores(groups: Sequence[RolloutGroup]) -> torch.Tensor:
    width = max(len(group.distractor_scores) for group in groups)
    scores_BJ = np.full((len(groups), width), np.nan, dtype=np.float32)
    for row, group in enumerate(groups):
        scores_BJ[row, : len(group.distractor_scores)] = group.distractor_scores
    return torch.from_numpy(scores_BJ)


def _allowed(
    groups: Sequence[RolloutGroup], target_BL: np.ndarray, candidates_BKL: np.ndarray, vocabulary: Vocabulary
) -> torch.Tensor:
    """bool [B, S, L, V]: what the decoder's mask allowed at every step of every branch, in each group's own
    catalogue.

    Rollouts never exclude the ground truth, so that its log-prob and those of the candidates are normalised
    over the same items. On its own branch it is allowed even where it has been retired since, or a group
    excludes it all the same: its loss would be infinite.
    """
    branches_BSL = np.concatenate([target_BL[:, None], candidates_BKL], axis=1)
    prompts, branches, levels = branches_BSL.shape
    allowed_BSLV = np.empty((prompts, branches, levels, vocabulary.trie.vocab_size), dtype=bool)
    versions_B = np.asarray([group.catalogue_version for group in groups])
    for version in np.unique(versions_B).tolist():
        trie, rows = vocabulary.trie_of(version), np.flatnonzero(versions_B == version)
        nodes = trie.walk(branches_BSL[rows])[..., :-1].reshape(-1)
        requests = np.repeat(np.arange(len(rows)), branches * levels)
        exclusions = Exclusions(trie, [groups[row].excluded for row in rows.tolist()])
        allowed_BSLV[rows] = trie.mask(nodes, exclusions, requests).reshape(-1, *allowed_BSLV.shape[1:])
    np.put_along_axis(allowed_BSLV[:, 0], target_BL[..., None], True, axis=-1)
    chosen_BSL = np.take_along_axis(allowed_BSLV, branches_BSL[..., None], axis=-1)[..., 0]
    if not chosen_BSL.all():
        row, branch, level = (int(index) for index in np.argwhere(~chosen_BSL)[0])
        raise RunError(
            f"lease {groups[row].lease_id}: token {branches_BSL[row, branch, level]} at level {level} of "
            f"candidate {branch - 1} lies outside the trie mask of constrained decoding, so the engine did "
            "not apply the mask the learner assumes"
        )
    return torch.from_numpy(allowed_BSLV)


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
