"""What a study says: means by row, and paired differences with intervals and corrected p-values.

    difference(a, b)   mean over seeds and examples of metric(a) - metric(b), on the same examples and seeds;
                       weighted in weighted metrics
    interval           percentile bootstrap, whole users drawn, each with the examples of all seeds
    p                  of a regression of the difference on a constant, standard error clustered by user
                       (Liang and Zeger 1986; statsmodels), corrected for the number of comparisons of the
                       data set and the metric (Holm 1979)

The seeds are blocks: an interval says what other users would give with these seeds, not other seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

from sluice.learner.evaluation.exposure import WEIGHTED
from sluice.learner.ranking_metrics import bootstrap_mean, per_user
from sluice.services.study.judges.lists import GROUP, TEST, TRUE_CTR, VALID, WEIGHT
from sluice.services.study.judges.reward import JUDGE, RETURN, TRUE_DWELL
from sluice.services.study.results import Cell, cells_of
from sluice.services.study.settings import START, StudyConfig

LOGGED = ("hr@10", "ndcg@10", "mrr")
WEIGHTED_HR = WEIGHTED + LOGGED[0]
JUDGED = (TRUE_CTR, JUDGE, RETURN, TRUE_DWELL)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A row less another, on one data set."""

    of_set: str
    metric: str
    first: str
    second: str
    group: str | None  # of users, where the truth tells groups apart; None: all
    mean: float
    second_mean: float  # what the difference is relative to
    low: float
    high: float
    p: float  # corrected over the comparisons of the data set and the metric, of all users alone

    @property
    def relative(self) -> float:
        """The difference as a share of the second row's mean."""
        return self.mean / self.second_mean if self.second_mean else float("nan")


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A row's examples over all seeds of a data set."""

    users: np.ndarray  # int64 [n]
    ends: np.ndarray  # int64 [seeds], how many examples there are until the end of each seed
    positions: np.ndarray  # int64 [n]
    ranks: np.ndarray  # int64 [n], of the target in the list, 0: not there
    values: Mapping[str, np.ndarray]  # float64 [n] by metric
    # float64 [n], what an example counts in a metric whose name begins with WEIGHTED; None: there is none
    weights: np.ndarray | None
    groups: np.ndarray | None  # [n]

    def mean(self, metric: str, group: str | None = None) -> float:
        """Of the examples of a group, or of all."""
        inside = self.of_group(group)
        weights = self.weights_in(metric)
        chosen = None if weights is None else weights[inside]
        return float(np.average(self.values[metric][inside], weights=chosen))

    def weights_in(self, metric: str) -> np.ndarray | None:
        """float64 [n], what each example counts in a metric; None: all alike."""
        return self.weights if metric.startswith(WEIGHTED) else None

    def of_group(self, group: str | None) -> np.ndarray:
        """bool [n]."""
        if group is None or self.groups is None:
            return np.ones(len(self.users), dtype=bool)
        inside: np.ndarray = self.groups == group
        return inside


class Findings:
    """The rows of a study that are done with all seeds, and what they differ by."""

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self._cells = {(cell.of_set, cell.arm, cell.seed): cell for cell in cells_of(study)}
        self._read: dict[tuple[str, str, str], Pooled] = {}  # a page asks for the same examples many times

    def rows(self, of_set: str) -> dict[str, str]:
        """The arm behind each row of a data set: its own, or the one that was chosen on validation."""
        done = {
            arm: arm
            for arm in (START, *self.study.arms)
            if all(self._cells[of_set, arm, seed].is_done for seed in self.study.seeds)
        }
        chosen = {
            row: self._best(of_set, [arm for arm in arms if arm in done])
            for row, arms in self.study.best_of.items()
            if any(arm in done for arm in arms)
        }
        return done | chosen

    def pooled(self, of_set: str, arm: str, split: str = TEST) -> Pooled:
        """The examples of an arm over all seeds, as they were when they were first asked for."""
        key = of_set, arm, split
        if key not in self._read:
            cells = [self._cells[of_set, arm, seed] for seed in self.study.seeds]
            self._read[key] = pool_examples(cells, self.study, split)
        return self._read[key]

    def differences(self, of_set: str) -> list[Difference]:
        """Every row less each of `against`, by metric, and by group of users."""
        rows = self.rows(of_set)
        pooled = {arm: self.pooled(of_set, arm) for arm in set(rows.values())}
        pairs = [
            (row, other)
            for other in self.study.against
            if other in rows
            for row in rows
            if rows[row] != rows[other]
        ]
        found: list[Difference] = []
        for metric in next(iter(pooled.values())).values:
            of_pairs = [(a, b, pooled[rows[a]], pooled[rows[b]]) for a, b in pairs]
            p_values = _corrected(
                [
                    _p_value(a.values[metric] - b.values[metric], a.users, a.weights_in(metric))
                    for *_, a, b in of_pairs
                ]
            )
            for (first, second, a, b), p in zip(of_pairs, p_values, strict=True):
                groups = [None] if a.groups is None else [None, *np.unique(a.groups).tolist()]
                found += [_difference(of_set, metric, first, second, a, b, group, p) for group in groups]
        return found

    def _best(self, of_set: str, arms: Sequence[str]) -> str:
        """By the mean over seeds on validation: true click-through where it is known, else HR@10, weighted
        where the log has propensities.
        """

        def score(arm: str) -> float:
            pooled = self.pooled(of_set, arm, VALID)
            known = (name for name in (TRUE_CTR, WEIGHTED_HR, LOGGED[0]) if name in pooled.values)
            return pooled.mean(next(known))

        return max(arms, key=score)


def pool_examples(cells: Sequence[Cell], study: StudyConfig, split: str) -> Pooled:
    """One arm's examples with all its seeds, in their order."""
    tables = [cell.examples(study.checkpoint, split) for cell in cells]

    def column(name: str) -> np.ndarray:
        return np.concatenate([table.column(name).to_numpy(zero_copy_only=False) for table in tables])

    ranks = column("rank").astype(np.int64)
    metrics = per_user(ranks)
    values = {name: metrics[name] for name in LOGGED}
    known = set(tables[0].column_names)
    values |= {name: column(name) for name in JUDGED if name in known}
    if WEIGHT in known:
        values[WEIGHTED_HR] = metrics[LOGGED[0]]
    return Pooled(
        users=column("user"),
        ends=np.cumsum([len(table) for table in tables]),
        positions=column("position"),
        ranks=ranks,
        values=values,
        weights=column(WEIGHT) if WEIGHT in known else None,
        groups=column(GROUP) if GROUP in known else None,
    )


def _difference(
    of_set: str, metric: str, first: str, second: str, a: Pooled, b: Pooled, group: str | None, p: float
) -> Difference:
    assert np.array_equal(a.users, b.users) and np.array_equal(a.positions, b.positions)
    chosen = a.of_group(group)
    change = (a.values[metric] - b.values[metric])[chosen]
    weights = a.weights_in(metric)
    weights = None if weights is None else weights[chosen]
    low, high = bootstrap_mean(change, a.users[chosen], weights=weights)
    return Difference(
        of_set=of_set,
        metric=metric,
        first=first,
        second=second,
        group=group,
        mean=float(np.average(change, weights=weights)),
        second_mean=b.mean(metric, group),
        low=low,
        high=high,
        p=p if group is None else float("nan"),
    )


def _p_value(change: np.ndarray, users: np.ndarray, weights: np.ndarray | None) -> float:
    """Two-sided, that the (weighted) mean is 0; 1 where nothing differs."""
    counted = np.ones(len(change)) if weights is None else weights
    if not (change * counted).any():
        return 1.0
    model = sm.WLS(change, np.ones(len(change)), weights=counted)
    fitted = model.fit(cov_type="cluster", cov_kwds={"groups": users})
    return float(fitted.pvalues[0])


def _corrected(p_values: Sequence[float]) -> list[float]:
    return multipletests(p_values, method="holm")[1].tolist() if p_values else []
