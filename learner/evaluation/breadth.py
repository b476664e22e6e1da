"""How broad the recommended lists are, and whether a policy's lists are narrower than another's.

Training on rewards of items can raise HR@1 while it shows everybody the same few items. HR@50 and coverage
then fall.

Definition: docs/algorithms.md, Breadth of the lists.
"""

import math
from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
from scipy import stats

from sluice.catalog.data.dataset import Dataset

HEAD_SHARE = 0.1  # of the catalogue, the most popular items
_BATCH = 50  # resamples at a time


def head_items(dataset: Dataset) -> np.ndarray:
    """Which items, bool `[N]`, are the most popular tenth in the logs until the end of the prompts' part."""
    order = np.argsort(-dataset.item_shares(dataset.prompt_part), kind="stable")
    head = np.zeros(dataset.items, dtype=bool)
    head[order[: math.ceil(HEAD_SHARE * dataset.items)]] = True
    return head


def measure_breadth(lists: np.ndarray, head: np.ndarray) -> dict[str, float]:
    """Breadth of lists of item rows int32 `[n, places]`, -1 where there is no item.

    >>> found = measure_breadth(np.array([[0, 1], [0, 2]]), np.array([True, False, False, False]))
    >>> found["coverage"], found["head_share"], found["duplicates"]
    (0.75, 0.5, 0.0)

    Args:
        lists: what each example is recommended.
        head: bool `[N]`, the popular items.

    Returns:
        `coverage`, distinct items / N; `head_share`, places with a head item / places with an item;
        `entropy` in nats of the items over all places; `duplicates`, places whose item stands higher in the
        same list / places with an item.
    """
    counts = np.bincount(lists[lists >= 0], minlength=len(head))
    places = max(1, int(counts.sum()))
    shares = counts[counts > 0] / places
    ordered = np.sort(lists, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return {
        "coverage": float((counts > 0).sum() / len(head)),
        "head_share": float(counts[head].sum() / places),
        "entropy": float(-(shares * np.log(shares)).sum()),
        "duplicates": float(repeated.sum() / places),
    }


def coverage_change(
    before: np.ndarray,
    after: np.ndarray,
    users: np.ndarray,
    items: int,
    seed: int = 0,
    resamples: int = 500,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Coverage of the lists `after` less that of `before`, with its interval: (difference, low, high).

    Coverage grows with the number of users, and a resample has only two thirds of them, so its percentiles
    are no interval. The interval is normal around the difference, with the deviation that it has over
    resamples of whole users.

    Args:
        before: int32 `[n, places]`, -1 where there is no item.
        after: of the same n examples.
        users: `[n]`, whose each example is.
        items: N.
        seed: of the resamples.
        resamples: how many.
        confidence: of the interval.
    """
    _, owner = np.unique(users, return_inverse=True)
    shown = [_shown_to(lists, owner, items) for lists in (before, after)]
    difference = _covered(shown[1]) - _covered(shown[0])
    generator, count, found = np.random.default_rng(seed), int(owner.max()) + 1, []
    for first in range(0, resamples, _BATCH):
        size = (min(_BATCH, resamples - first), count)
        drawn = np.zeros(size, dtype=np.float32)
        np.put_along_axis(drawn, generator.integers(count, size=size), 1.0, axis=1)
        reached = [((sp.csr_matrix(drawn) @ matrix) > 0).sum(axis=1) for matrix in shown]
        found.append(np.asarray(reached[1] - reached[0]).reshape(-1) / items)
    half = float(stats.norm.ppf(0.5 + confidence / 2) * np.std(np.concatenate(found)))
    return difference, difference - half, difference + half


def is_narrower(changes: Mapping[str, tuple[float, float, float]]) -> bool:
    """Whether lists got narrower, from changes (difference, low, high) of `hr@1`, `hr@50` and `coverage`.

    They did if coverage falls and its interval lies below 0, or if HR@50 does so while HR@1 rises. A change
    that was not measured says nothing.
    """

    def falls(name: str) -> bool:
        return name in changes and changes[name][2] < 0

    return falls("coverage") or (falls("hr@50") and changes["hr@1"][0] > 0)


def _shown_to(lists: np.ndarray, owner: np.ndarray, items: int) -> sp.csr_matrix:
    """float32 `[U, N]`, how often each user is shown each item."""
    row, place = np.nonzero(lists >= 0)
    ones = np.ones(len(row), dtype=np.float32)
    return sp.csr_matrix((ones, (owner[row], lists[row, place])), shape=(int(owner.max()) + 1, items))


def _covered(shown: sp.csr_matrix) -> float:
    return float((shown.sum(axis=0) > 0).sum() / shown.shape[1])
