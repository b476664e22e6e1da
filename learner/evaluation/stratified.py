"""AdaGRPO's stratified analysis (arXiv 2606.08480): the policy's rank of the target against the ranker's.

Expected [paper]: reward-driven updates help where the policy is unsure and the ranker discriminates, and do
nothing or harm elsewhere. How the cells are made and what is measured in them is ours.

A user's validation examples say into which cell the user falls, by where the starting policy and where the
ranker place the targets; the user's test examples are measured. Cells that were defined by the ranks of the
measured targets themselves would start at HR@10 1 or 0 and could only fall or only rise, whatever was
trained.

- the change of HR@10 from the start to a later policy, and the paired difference best - control with its
  interval;
- the rank gain, mean over test examples of log2(rank at the start / rank now): +1 is a rank halved. A target
  that is not among the W places counts as rank W + 1;
- the share of test examples that the gate would admit, with the ten best beams of the start in the place of
  the K candidates of a training prompt, and distractors from other users' ten best.

Definition: docs/algorithms.md, Stratified analysis.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.evaluation.evaluate import TOP, UserResults
from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.ranker.contract import Ranker, ask_score
from sluice.learner.ranking_metrics import bootstrap_mean

LATER = ("control", "best")  # the policies that are compared with the start
RANKER_WIDTH = 50  # places of the ranker's lists, the end of its last band
FEWEST_USERS = 10  # a cell of fewer has no interval


def stratify_users(
    results: Mapping[str, UserResults],
    defining: tuple[UserResults, UserResults],
    admitted: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The cells that hold a test example, by the policy's band of ranks, then by the ranker's.

    Args:
        results: of "start", "control" and "best" on the same n test examples.
        defining: what the start and what the ranker give for the validation examples, in lists of any width.
            Test examples of a user without one are in no cell.
        admitted: bool `[n]`, see `gate_at_start`; None leaves `admitted` out of the cells.
    """
    start, users = results["start"], results["start"].users
    policy, ranker = (mean_ranks(judged, users) for judged in defining)
    cells = []
    for policy_label, in_policy in bands_of(policy, defining[0].width).items():
        for ranker_label, in_ranker in bands_of(ranker, defining[1].width).items():
            inside = in_policy & in_ranker
            if not inside.any():
                continue
            hits = {name: _hits(results[name].ranks[inside]) for name in ("start", *LATER)}
            members = len(np.unique(users[inside]))
            change = hits["best"] - hits["control"]
            cell: dict[str, Any] = {
                "policy_rank": policy_label,
                "ranker_rank": ranker_label,
                "users": members,
                "examples": int(inside.sum()),
                **{f"{name}_hr@10": float(values.mean()) for name, values in hits.items()},
                "best-control": float(change.mean()),
                "best-control_interval": list(bootstrap_mean(change, users[inside]))
                if members >= FEWEST_USERS
                else None,
            }
            if admitted is not None:
                cell["admitted"] = float(admitted[inside].mean())
            for name in LATER:
                before, now = start.ranks[inside], results[name].ranks[inside]
                cell[f"{name}_rank_gain"] = rank_gain(before, now, start.width)
            cells.append(cell)
    return cells


def mean_ranks(judged: UserResults, users: np.ndarray) -> np.ndarray:
    """The geometric mean rank of the targets of each of `users` `[n]`, float64 `[n]`.

    A target that is not in its list of W places counts as W + 1. NaN for a user without an example.
    """
    known, owner = np.unique(judged.users, return_inverse=True)
    logs = np.log(np.where(judged.ranks == 0, judged.width + 1, judged.ranks))
    # exp(log(10)) is a little more than 10, and bands end at whole places.
    means = np.round(np.exp(np.bincount(owner, weights=logs) / np.bincount(owner)), 9)
    place = np.minimum(np.searchsorted(known, users), len(known) - 1)
    return np.where(known[place] == users, means[place], np.nan)


def bands_of(ranks: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """Which of the ranks `[n]`, bool `[n]`, are in each band: the top, the rest of the `width` places, below
    them. NaN is in none.
    """
    bands = {f"1-{TOP}": ranks <= TOP}
    if width > TOP:
        bands[f"{TOP + 1}-{width}"] = (ranks > TOP) & (ranks <= width)
    return bands | {f">{width}": ranks > width}


def rank_gain(before: np.ndarray, after: np.ndarray, width: int) -> float:
    """Mean log2(before / after) of ranks `[n]`, where 0, not in the list, counts as width + 1."""
    before, after = (np.where(ranks == 0, width + 1, ranks) for ranks in (before, after))
    return float(np.mean(np.log2(before / after)))


def _hits(ranks: np.ndarray) -> np.ndarray:
    """HR@10 of each of the ranks `[n]`."""
    return ((ranks >= 1) & (ranks <= TOP)).astype(np.float64)


def gate_at_start(
    start: UserResults,
    dataset: Dataset,
    ranker: Ranker,
    settings: GateSettings,
    distractors: int,
    trust: np.ndarray | None = None,
    batch: int = 64,
) -> np.ndarray:
    """Which of the n test users the gate would admit, bool `[n]`.

    Args:
        start: the starting policy's results on all test users.
        dataset: their histories and targets.
        ranker: scores GT, the ten best and the distractors.
        settings: of the gate.
        distractors: J, drawn from the ten best of all users, less the user's own ten, GT, and what the user
            has where the data set leaves it out.
        trust: float32 `[n]` of the prompts, as `sluice.learner.trust.meter` measures it, where the gate asks.
        batch: users that the ranker is asked about at a time.
    """
    examples = dataset.examples("test")
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    targets = np.array([dataset.target(*pair) for pair in pairs], dtype=np.int32)
    shown = np.unique(start.top_items[start.top_items >= 0])
    drawn = np.full((len(pairs), distractors), -1, dtype=np.int32)
    for row, own in enumerate(start.top_items):
        pool = np.setdiff1d(shown, np.append(own, targets[row]))
        if dataset.settings.exclude_seen:  # rankers like what the user has, and rollouts never ask about it
            pool = np.setdiff1d(pool, dataset.seen(*pairs[row]))
        chosen = np.random.default_rng([0, row]).choice(pool, size=min(distractors, len(pool)), replace=False)
        drawn[row, : len(chosen)] = chosen
    candidates = np.concatenate([targets[:, None], start.top_items, drawn], axis=1)
    scores = np.concatenate(
        [
            ask_score(
                ranker,
                [
                    dataset.history(*pair, dataset.settings.max_history)
                    for pair in pairs[first : first + batch]
                ],
                candidates[first : first + batch],
                examples.users[first : first + batch],
            )
            for first in range(0, len(pairs), batch)
        ]
    )
    group = _as_group(start.top_items, targets, torch.from_numpy(np.asarray(scores, dtype=np.float32)))
    if trust is not None:
        group = replace(group, trust_B=torch.from_numpy(trust))
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
