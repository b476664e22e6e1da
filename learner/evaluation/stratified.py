"""AdaGRPO's stratified analysis (arXiv 2606.08480): the policy's rank of the target against the ranker's.

The target is the ground truth (GT), the item that the user took. Every test user falls into one cell by where
the starting policy and where the ranker place it. Expected [paper]: reward-driven updates help where the
policy is unsure and the ranker discriminates, and do nothing or harm elsewhere. What is measured in each
cell, and the gate at test time, are ours:

- the change of HR@10 from the start to a later policy;
- the rank gain, mean over users of log2(rank at the start / rank now): +1 is a rank halved. A GT that is not
  among the W beams counts as rank W + 1;
- the share of users whom the gate would admit, with the ten best beams of the start in the place of the K
  candidates of a training prompt, and distractors from other users' ten best.

Definition: docs/algorithms.md, Stratified analysis.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.evaluation.evaluate import TOP, UserResults
from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.ranker.contract import Ranker

LATER = ("control", "best")  # the policies that are compared with the start


def stratify_users(
    results: Mapping[str, UserResults],
    ranker: UserResults,
    beam_width: int,
    admitted: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The cells that hold a user, by the policy's band of ranks, then by the ranker's.

    Args:
        results: of "start", "control" and "best" on the same n users.
        ranker: its ranks in the full catalogue.
        beam_width: W of the evaluation; a policy's rank is the place among its beams.
        admitted: bool `[n]`, see `gate_at_start`; None leaves `admitted` out of the cells.
    """
    start = results["start"].ranks
    cells = []
    for policy_label, in_policy in policy_bands(start, beam_width).items():
        for ranker_label, in_ranker in ranker_bands(ranker.ranks).items():
            inside = in_policy & in_ranker
            if not inside.any():
                continue
            cell: dict[str, Any] = {
                "policy_rank": policy_label,
                "ranker_rank": ranker_label,
                "users": int(inside.sum()),
                "start_hr@10": hit_rate(start[inside]),
            }
            if admitted is not None:
                cell["admitted"] = float(admitted[inside].mean())
            for name in LATER:
                now = results[name].ranks[inside]
                cell[f"{name}_hr@10"] = hit_rate(now)
                cell[f"{name}_rank_gain"] = rank_gain(start[inside], now, beam_width)
            cells.append(cell)
    return cells


def policy_bands(ranks: np.ndarray, beam_width: int) -> dict[str, np.ndarray]:
    """Which users, bool `[n]`, are in each band of places among the beams; 0 is not among them."""
    bands = {f"1-{TOP}": (ranks >= 1) & (ranks <= TOP)}
    if beam_width > TOP:
        bands[f"{TOP + 1}-{beam_width}"] = ranks > TOP
    return bands | {f"not in {beam_width}": ranks == 0}


def ranker_bands(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Which users, bool `[n]`, are in each band of places in the full catalogue."""
    return {f"1-{TOP}": ranks <= TOP, f"{TOP + 1}-50": (ranks > TOP) & (ranks <= 50), ">50": ranks > 50}


def hit_rate(ranks: np.ndarray) -> float:
    """HR@10 of ranks `[n]`."""
    return float(((ranks >= 1) & (ranks <= TOP)).mean())


def rank_gain(before: np.ndarray, after: np.ndarray, beam_width: int) -> float:
    """Mean log2(before / after) of ranks `[n]`, where 0, not among the beams, counts as beam_width + 1."""
    before, after = (np.where(ranks == 0, beam_width + 1, ranks) for ranks in (before, after))
    return float(np.mean(np.log2(before / after)))


def gate_at_start(
    start: UserResults,
    dataset: Dataset,
    ranker: Ranker,
    settings: GateSettings,
    distractors: int,
    batch: int = 64,
) -> np.ndarray:
    """Which of the n test users the gate would admit, bool `[n]`.

    Args:
        start: the starting policy's results on all test users.
        dataset: their histories and targets.
        ranker: scores GT, the ten best and the distractors.
        settings: of the gate.
        distractors: J, drawn from the ten best of all users, less the user's own ten and GT.
        batch: users that the ranker is asked about at a time.
    """
    examples = dataset.examples("test")
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    targets = np.array([dataset.target(*pair) for pair in pairs], dtype=np.int32)
    shown = np.unique(start.top_items[start.top_items >= 0])
    drawn = np.full((len(pairs), distractors), -1, dtype=np.int32)
    for row, own in enumerate(start.top_items):
        pool = np.setdiff1d(shown, np.append(own, targets[row]))
        chosen = np.random.default_rng([0, row]).choice(pool, size=min(distractors, len(pool)), replace=False)
        drawn[row, : len(chosen)] = chosen
    candidates = np.concatenate([targets[:, None], start.top_items, drawn], axis=1)
    scores = np.concatenate(
        [
            ranker.score(
                [
                    dataset.history(*pair, dataset.settings.max_history)
                    for pair in pairs[first : first + batch]
                ],
                candidates[first : first + batch],
            )
            for first in range(0, len(pairs), batch)
        ]
    )
    group = _as_group(start.top_items, targets, torch.from_numpy(np.asarray(scores, dtype=np.float32)))
    return compute_gate(group, torch.zeros(len(pairs)), settings).admitted_B.numpy()


def _as_group(top_items: np.ndarray, targets: np.ndarray, scores: torch.Tensor) -> GroupBatch:
    """A batch of beams of one token each, the item row itself.

    Their log-probs need only be in the order of the places.
    """
    items_BK = torch.from_numpy(top_items.astype(np.int64))
    users, beams = items_BK.shape
    places = -torch.arange(beams, dtype=torch.float32)
    return GroupBatch(
        history_BT=torch.zeros(users, 1, dtype=torch.int64),
        history_lengths_B=torch.ones(users, dtype=torch.int64),
        target_BL=torch.from_numpy(targets.astype(np.int64))[:, None],
        candidates_BKL=items_BK[..., None],
        behaviour_log_probs_BKL=places.expand(users, beams)[..., None],
        candidate_items_BK=items_BK,
        target_items_B=torch.from_numpy(targets.astype(np.int64)),
        candidate_scores_BK=scores[:, 1 : 1 + beams],
        target_scores_B=scores[:, 0],
        distractor_scores_BJ=scores[:, 1 + beams :],
        allowed_BSLV=None,
        decoding=Decoding(kind="beam", candidates=beams),
    )
