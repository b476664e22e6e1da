"""Baselines, metrics and intervals of a run, worked out again with dense matrices and without shortcuts.

A baseline's score is a float64 here and a float32 in the product, so neighbours may change places. Each rank
therefore comes as a range: from the place that the target has when all near-ties stand behind it to the one
when they stand before it. What the run reports must lie between the means of both ends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.audit.data import Check, Run

NEAR = 2e-6  # of a score: what float32 may round away
EQUAL = 1e-9
WINDOW, KNN_DECAY, EASE_DECAY, RIDGE = 50, 0.8, 0.9, 500.0
DEVIATIONS = 4.0  # of Monte Carlo error, or of a sample's mean, that agreement allows
RESAMPLES = 2000  # of the run's intervals
OWN_RESAMPLES = 20_000
Metrics = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one row of the summary is made of, for n examples."""

    users: np.ndarray  # [n]
    ranks: np.ndarray  # [n], 0: not in the list
    best: np.ndarray  # [n], ranks with every near-tie behind the target
    worst: np.ndarray
    tops: np.ndarray  # [n, 10] item rows, -1 where there are fewer
    exact: bool  # all test examples, not a sample of them


def metrics_of(ranks: np.ndarray, width: int) -> Metrics:
    """Each metric of each example."""
    values: Metrics = {}
    for k in (1, 5, 10, 50):
        if k <= width:
            values[f"hr@{k}"] = np.array([float(0 < rank <= k) for rank in ranks])
    for k in (5, 10):
        values[f"ndcg@{k}"] = np.array([1 / np.log2(rank + 1) if 0 < rank <= k else 0.0 for rank in ranks])
    values["mrr"] = np.array([1 / rank if rank else 0.0 for rank in ranks])
    return values


def breadth_of(tops: np.ndarray, head: set[int], items: int) -> dict[str, float]:
    """Coverage, share of head items, entropy in nats and duplicates of the ten best places."""
    shown = [int(item) for row in tops for item in row if item >= 0]
    _, counts = np.unique(shown, return_counts=True)
    shares = counts / len(shown)
    repeated = sum(len(own) - len(set(own)) for own in ([i for i in row if i >= 0] for row in tops.tolist()))
    return {
        "coverage": len(counts) / items,
        "head_share": sum(item in head for item in shown) / len(shown),
        "entropy": float(-(shares * np.log(shares)).sum()),
        "duplicates": repeated / len(shown),
    }


def head_of(run: Run) -> set[int]:
    """The most popular tenth of the catalogue until the end of the prompts' part; ties by item row."""
    fresh = any("fresh" in labels for labels in run.labels)
    counts = popularity(run.before("valid" if fresh else "fresh"), len(run.items))
    order = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    return set(order[: -(-len(counts) // 10)])


def popularity(sequences: Sequence[Sequence[int]], items: int) -> np.ndarray:
    """How often each item was consumed."""
    counts = np.zeros(items)
    for sequence in sequences:
        for item in sequence:
            counts[item] += 1
    return counts


def knn_similarity(sequences: Sequence[Sequence[int]], items: int) -> np.ndarray:
    """C(i, j) / sqrt(n_i n_j), dense; a pair k places apart counts 1/sqrt(k)."""
    counts = np.zeros((items, items))
    for sequence in map(np.asarray, sequences):
        for place in range(1, len(sequence)):
            earlier = sequence[max(0, place - WINDOW) : place]
            weights = 1 / np.sqrt(np.arange(len(earlier), 0, -1))
            np.add.at(counts, (np.full(len(earlier), sequence[place]), earlier), weights)
    counts = counts + counts.T
    np.fill_diagonal(counts, 0)
    n = np.maximum(popularity(sequences, items), 1)
    return counts / np.sqrt(np.outer(n, n))


def ease_weights(sequences: Sequence[Sequence[int]], items: int) -> np.ndarray:
    """B of EASE, by a general inverse."""
    bags = np.zeros((len(sequences), items))
    for user, sequence in enumerate(sequences):
        bags[user, list(set(sequence))] = 1
    inverse = np.linalg.inv(bags.T @ bags + RIDGE * np.eye(items))
    weights = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0)
    return weights


def baselines(run: Run) -> Iterator[tuple[str, Callable[[list[int]], np.ndarray], float]]:
    """Name, score of a history, and what counts as a near-tie."""
    known, items = run.before("valid"), len(run.items)
    counts = popularity(known, items)
    yield "popularity", lambda _history: counts, 0.0
    similarity = knn_similarity(known, items)
    behind = 1e-9 * counts / counts.max()  # what nothing connects to the history, by popularity
    yield "itemknn", lambda history: decayed(similarity, history, KNN_DECAY) + behind, NEAR
    weights = ease_weights(known, items)
    yield "ease", lambda history: decayed(weights, history, EASE_DECAY), NEAR


def decayed(matrix: np.ndarray, history: list[int], decay: float) -> np.ndarray:
    """The rows of the last items of a history, added up, older ones counting less."""
    recent = history[-WINDOW:]
    return (decay ** np.arange(len(recent) - 1, -1, -1.0)) @ matrix[recent]


def judge(run: Run, score: Callable[[list[int]], np.ndarray], near: float) -> Judged:
    """Rank every target of the test part in the whole catalogue, seen items left out; ties by item row."""
    width, examples = run.config["evaluation"]["beam_width"], run.examples("test")
    ranks, best, worst, tops = [], [], [], []
    rows = np.arange(len(run.items))
    for user, position in examples:
        history, target = run.sequences[user][:position], run.sequences[user][position]
        scores = score(history).copy()
        slack = near * np.abs(scores).max()
        if run.data["exclude_seen"]:
            scores[history] = -np.inf
        own = scores[target]
        if own == -np.inf:
            places = [0, 0, 0]
        else:
            before = (scores > own) | ((scores == own) & (rows < target))
            near_tie = np.abs(scores - own) <= slack if slack else np.zeros_like(before)
            near_tie[target] = False
            places = [
                1 + before.sum(),
                1 + (before & ~near_tie).sum(),
                1 + (before | near_tie).sum(),
            ]
        for values, place in zip((ranks, best, worst), places, strict=True):
            values.append(int(place) if place <= width else 0)
        order = np.lexsort((rows, -scores))[:10]
        tops.append(np.where(np.isfinite(scores[order]), order, -1))
    return Judged(
        users=np.array([user for user, _ in examples]),
        ranks=np.array(ranks),
        best=np.array(best),
        worst=np.array(worst),
        tops=np.array(tops),
        exact=True,
    )


def check_row(run: Run, name: str, judged: Judged, note: str = "") -> Check:
    """The metrics of a row of the summary against ours, within near-ties, or within a sample's error."""
    reported, width = run.summary["metrics"][name], run.config["evaluation"]["beam_width"]
    ours, high, low = (metrics_of(ranks, width) for ranks in (judged.ranks, judged.best, judged.worst))
    differ, largest, compared, remarks = 0, 0.0, 0, [note] if note else []
    for metric in ours.keys() & reported.keys():
        mean, bounds = ours[metric].mean(), [low[metric].mean() - EQUAL, high[metric].mean() + EQUAL]
        if not judged.exact:
            share = max(mean, reported[metric], 1 / len(judged.ranks))
            error = max(ours[metric].std(), np.sqrt(share * (1 - share))) / np.sqrt(len(judged.ranks))
            bounds = [mean - DEVIATIONS * error, mean + DEVIATIONS * error]
        compared, largest = compared + 1, max(largest, abs(mean - reported[metric]))
        if not bounds[0] <= reported[metric] <= bounds[1]:
            differ += 1
            remarks.append(f"{metric} {reported[metric]:.6f}, here {mean:.6f}")
    if judged.exact:
        for metric, value in breadth_of(judged.tops, head_of(run), len(run.items)).items():
            if metric in reported:
                compared, gap = compared + 1, abs(value - reported[metric])
                largest = max(largest, gap)
                if gap > (EQUAL if (judged.best == judged.worst).all() else 0.005):
                    differ += 1
                    remarks.append(f"{metric} {reported[metric]:.6f}, here {value:.6f}")
    return Check(
        what=f"metrics of {name}", values=compared, differ=differ, largest=largest, note="; ".join(remarks)
    )


def check_intervals(run: Run, rows: Mapping[str, Judged]) -> Check:
    """Intervals of rows, and of paired differences, whose examples are all judged here.

    With 2,000 resamples the end at 2.5% lies, with almost certainty, between our quantiles at 2.5% less and
    more four of its standard errors.
    """
    compared, differ, largest, remarks = 0, 0, 0.0, []
    random = np.random.default_rng(1)
    exact = {name: row for name, row in rows.items() if row.exact}
    for metric, intervals in run.summary["intervals"].items():
        values = {
            name: metrics_of(row.ranks, run.config["evaluation"]["beam_width"])[metric]
            for name, row in exact.items()
        }
        for name, reported in intervals.items():
            parts = [name] if name in values else name.split("-")
            if not all(part in values for part in parts):
                continue
            own = values[parts[0]] - (values[parts[1]] if len(parts) > 1 else 0)
            ends = _interval_bounds(own, exact[parts[0]].users, random)
            for value, (low, middle, high) in zip(reported, ends, strict=True):
                slack = 1e-9 + max(_slack(exact[part], metric) for part in parts)
                compared, largest = compared + 1, max(largest, abs(value - middle))
                if not low - slack <= value <= high + slack:
                    differ += 1
                    remarks.append(
                        f"{metric} of {name}: {value:.5f}, here {middle:.5f} ({low:.5f} to {high:.5f})"
                    )
    note = "; ".join(remarks[:3])
    return Check(what="bootstrap intervals", values=compared, differ=differ, largest=largest, note=note)


def _slack(row: Judged, metric: str) -> float:
    """What near-ties may move the mean by."""
    high, low = (metrics_of(ranks, 50)[metric].mean() for ranks in (row.best, row.worst))
    return float(high - low)


def _interval_bounds(
    values: np.ndarray, users: np.ndarray, random: np.random.Generator
) -> list[tuple[float, float, float]]:
    """For both ends: the least, the likeliest and the largest that 2,000 resamples of users would give."""
    groups = [values[users == user] for user in np.unique(users)]
    sums, counts = np.array([own.sum() for own in groups]), np.array([len(own) for own in groups])
    means = np.empty(OWN_RESAMPLES)
    for index in range(OWN_RESAMPLES):
        drawn = random.integers(len(groups), size=len(groups))
        means[index] = sums[drawn].sum() / counts[drawn].sum()
    error = DEVIATIONS * np.sqrt(0.025 * 0.975 / RESAMPLES)
    ends = [(share - error, share, share + error) for share in (0.025, 0.975)]
    return [tuple(np.quantile(means, end)) for end in ends]
