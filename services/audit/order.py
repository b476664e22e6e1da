"""Where the ranker's order points the right way, and where ranker and policy disagree. All pure.

The area (AUC) of a prompt is the share of the policy's own candidates that the ranker scores below the ground
truth (`services/study/groups.py:areas_of`). If the policy knew the user perfectly, its candidates and the
ground truth would be draws of one distribution, and any ranker would have 1/2. So an area above 1/2 is what
the ranker knows beyond the policy, which is what a reward can teach. That holds for independent samples at
temperature 1 alone (`has_chance`); of beams, or at another temperature, a ranker that only knows what the
policy knows has another area.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.lists import ScoredLists

DECILES = 10
LENGTHS = (5, 20, 50)  # ends of the bands of history lengths
QUARTERS = ("youngest quarter", "second quarter", "third quarter", "oldest quarter")
FEWEST_OTHERS = 2  # other prompts of a user that say how well the ranker knows them


@dataclass(frozen=True, kw_only=True)
class Band:
    """The prompts of one band, such as a decile of items."""

    label: str
    area: Estimate


def by_exposure(
    exposures: np.ndarray, targets: np.ndarray, areas: np.ndarray, users: np.ndarray
) -> list[Band]:
    """By decile of the items, the least shown first, with the decile's share of all exposures.

    Args:
        exposures: int `[N]`, how often each item was shown or taken in the logs.
        targets: int `[n]` item rows of the prompts' ground truths.
        areas: float `[n]`.
        users: `[n]`.
    """
    decile_of = np.empty(len(exposures), dtype=np.int64)
    decile_of[np.argsort(exposures, kind="stable")] = np.arange(len(exposures)) * DECILES // len(exposures)
    total = max(1, int(exposures.sum()))
    labels = [
        f"decile {decile + 1}, {exposures[decile_of == decile].sum() / total:.1%} of the exposures"
        for decile in range(DECILES)
    ]
    return _bands(decile_of[targets], labels, areas, users)


def has_chance(decoding: Decoding) -> bool:
    """Whether a ranker that knows no more than the policy has an area of 1/2."""
    return decoding.kind == "sample" and decoding.temperature == 1.0 and decoding.top_p == 1.0


def by_history_length(positions: np.ndarray, areas: np.ndarray, users: np.ndarray) -> list[Band]:
    """By how many items the user had before the prompt, `positions` int `[n]`."""
    starts = (1, *(end + 1 for end in LENGTHS))
    labels = [f"{start} to {end} items" for start, end in zip(starts, LENGTHS, strict=False)]
    return _bands(np.searchsorted(LENGTHS, positions), [*labels, f"over {LENGTHS[-1]} items"], areas, users)


def by_item_age(ages: np.ndarray, areas: np.ndarray, users: np.ndarray) -> list[Band]:
    """By the time from the item's first appearance in the logs to the prompt, `ages` `[n]`, in quarters.

    An age of 0 is an item that nobody had before, a band of its own.
    """
    known = ages > 0
    band = np.zeros(len(ages), dtype=np.int64)
    order = np.argsort(ages[known], kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    band[known] = 1 + place * len(QUARTERS) // max(1, len(order))
    return _bands(band, ["never seen before", *QUARTERS], areas, users)


def ages_of(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The age `[n]` of each prompt's ground truth, in the log's unit of time."""
    known = dataset.known_until("valid")
    first = np.full(dataset.items, np.iinfo(np.int64).max)
    np.minimum.at(first, dataset.sequence[known], dataset.timestamps[known])
    rows = dataset.offsets[users] + positions
    ages: np.ndarray = dataset.timestamps[rows] - first[dataset.sequence[rows]]
    return ages


def areas_elsewhere(areas: np.ndarray, users: np.ndarray) -> np.ndarray:
    """The mean area of the *other* prompts of each prompt's user, float64 `[n]`.

    NaN for a user with fewer than `FEWEST_OTHERS` others. What a prompt's own area owes to chance is not in
    it.
    """
    known = ~np.isnan(areas)
    _, owner = np.unique(users, return_inverse=True)
    values = np.where(known, areas, 0.0)
    sums, counts = np.bincount(owner, weights=values), np.bincount(owner, weights=known)
    others = counts[owner] - known
    mean: np.ndarray = np.where(
        others >= FEWEST_OTHERS, (sums[owner] - values) / np.maximum(others, 1), np.nan
    )
    return mean


def measure_disagreement(lists: ScoredLists) -> dict[str, Estimate]:
    """Over the start's lists:

    - `other_best`: the ranker's best item is not the policy's best;
    - `rank_correlation`: Spearman's, of log-probs and scores; 0 where the ranker scores all alike;
    - `policy_right`, `ranker_right`: whose best item is the ground truth.
    """
    rows = np.arange(len(lists))
    policy_best = lists.items[rows, lists.log_probs.argmax(axis=1)]
    ranker_best = lists.items[rows, np.nan_to_num(lists.scores, nan=-np.inf).argmax(axis=1)]
    correlations = [
        _spearman(log_probs[items >= 0], scores[items >= 0])
        for log_probs, scores, items in zip(lists.log_probs, lists.scores, lists.items, strict=True)
    ]
    values = {
        "other_best": policy_best != ranker_best,
        "rank_correlation": np.asarray(correlations),
        "policy_right": policy_best == lists.targets,
        "ranker_right": ranker_best == lists.targets,
    }
    return {name: Estimate.of(value, lists.users) for name, value in values.items()}


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2:
        return float("nan")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def _bands(band: np.ndarray, labels: list[str], areas: np.ndarray, users: np.ndarray) -> list[Band]:
    """Those of the bands, by number, that hold a prompt."""
    return [
        Band(label=label, area=Estimate.of(areas[band == number], users[band == number]))
        for number, label in enumerate(labels)
        if (~np.isnan(areas[band == number])).any()
    ]
