"""Where reward helped, and whether the gate knows where it can: the stratified analysis of a study.

A prompt's stratum is the start's band of ranks for the ground truth by the ranker's, as the deciding rollout
(`sluice.services.study.start_rollouts`) has them: 1 to the head of the gate, the rest of the K places, below
all candidates. Measured are the arms' lists on the same examples, which know nothing of that rollout, and how
often the gate admits the stratum in the measuring rollout.

A gate is tested where the truth is known. A prompt is *right* where the ranker orders the candidates of the
measuring rollout as the truth does: Kendall's tau above 0. Of each gate, as the deciding rollout has it:

    precision   share of right prompts among those that it admits
    AUC         chance that it puts a right prompt above one that is not, ties half

A gate by chance has AUC 1/2, and its precision is the share of right prompts. Definition:
docs/algorithms.md, Stratified analysis.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sluice.learner.ranking_metrics import bootstrap_mean

BY_CHANCE, PUBLISHED, BY_USER, ORACLE = "by chance", "published", "by user", "oracle"
FEWEST = 10  # users of a stratum with an interval
_RESAMPLES = 300

Columns = Mapping[str, np.ndarray]  # of `measure_prompts`, over all seeds
Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Prompts of one band by one band, and what changed there from a row to another."""

    policy_band: str
    ranker_band: str
    examples: int
    users: int
    admitted: float  # share, in the measuring rollout
    changes: Mapping[str, Interval]  # by metric; "rank" is the mean log2(rank before / rank now)


@dataclass(frozen=True, kw_only=True)
class GateTest:
    """How well a gate picks the prompts where the ranker's order is right."""

    gate: str
    admitted: float  # share of prompts
    by_group: Mapping[str, float]  # the same, of each group of users
    precision: Interval
    agreement: float  # mean Kendall's tau of the admitted
    auc: Interval


def find_strata(
    prompts: Columns,
    *,
    head: int,
    candidates: int,
    changes: Mapping[str, np.ndarray],
    ranks: tuple[np.ndarray, np.ndarray],
    width: int,
) -> list[Stratum]:
    """The strata that hold a prompt.

    Args:
        prompts: columns `[n]`.
        head: places of the gate's head, tau * K.
        candidates: K.
        changes: by metric, of each prompt `[n]`, paired.
        ranks: of the ground truth `[n]` in the lists of either row, the one that is compared with first.
        width: places of a list; a ground truth that is in none of them counts as behind the last.
    """
    before, now = (np.where(of_row == 0, width + 1, of_row) for of_row in ranks)
    measured = {**changes, "rank": np.log2(before / now)}
    admitted = prompts["measuring_difficult"] & prompts["measuring_discriminable"]
    strata = []
    for policy_band, in_policy in _bands(prompts["deciding_policy_rank"], head, candidates).items():
        for ranker_band, in_ranker in _bands(prompts["deciding_ranker_rank"], head, candidates).items():
            inside = in_policy & in_ranker
            if inside.any():
                users = prompts["user"][inside]
                strata.append(
                    Stratum(
                        policy_band=policy_band,
                        ranker_band=ranker_band,
                        examples=int(inside.sum()),
                        users=len(np.unique(users)),
                        admitted=float(admitted[inside].mean()),
                        changes={name: _mean(values[inside], users) for name, values in measured.items()},
                    )
                )
    return strata


def run_gate_tests(prompts: Columns, trust_above: float | None, groups: np.ndarray | None) -> list[GateTest]:
    """Of the halves of the published gate, the gate itself, trust alone, and an oracle if groups are known.

    Args:
        prompts: columns `[n]`, of which `measuring_agreement` knows the truth.
        trust_above: what the gate by user asks for; None where nobody measured trust, or it has no cut.
        groups: of each prompt's user `[n]`: the oracle admits "A".
    """
    known = ~np.isnan(prompts["measuring_agreement"]) & (prompts["deciding_policy_rank"] > 0)
    columns = {name: values[known] for name, values in prompts.items()}
    groups = None if groups is None else groups[known]
    count = int(known.sum())
    difficult, discriminable = columns["deciding_difficult"], columns["deciding_discriminable"]
    gates: dict[str, tuple[np.ndarray, np.ndarray]] = {  # who is admitted, and by which number
        BY_CHANCE: (np.ones(count, dtype=bool), np.zeros(count)),
        "difficulty": (difficult, difficult),
        "discriminability": (discriminable, discriminable),
        PUBLISHED: (difficult & discriminable, difficult & discriminable),
    }
    trust = columns["trust"]
    if trust_above is not None and not np.isnan(trust).all():
        trusted = np.where(np.isnan(trust), discriminable, trust > trust_above)
        gates[BY_USER] = trusted, np.where(np.isnan(trust), 0.5, trust)
    if groups is not None:
        gates[ORACLE] = groups == "A", groups == "A"
    return [
        _test(name, admitted, signal.astype(np.float64), columns, groups)
        for name, (admitted, signal) in gates.items()
        if admitted.any()
    ]


def _test(
    name: str, admitted: np.ndarray, signal: np.ndarray, columns: Columns, groups: np.ndarray | None
) -> GateTest:
    agreement, users = columns["measuring_agreement"], columns["user"]
    right = agreement > 0
    by_group = {} if groups is None else {g: float(admitted[groups == g].mean()) for g in np.unique(groups)}
    return GateTest(
        gate=name,
        admitted=float(admitted.mean()),
        by_group=by_group,
        precision=_mean(right[admitted].astype(np.float64), users[admitted]),
        agreement=float(agreement[admitted].mean()),
        auc=_resampled(lambda rows: area_under_curve(signal[rows], right[rows]), users),
    )


def area_under_curve(signal: np.ndarray, right: np.ndarray) -> float:
    """The chance that the signal `[n]` of one that is right `[n]` is above that of one that is not.

    Ties count half. NaN where all or none are right.

    >>> area_under_curve(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]))
    0.75
    """
    above, below = signal[right], signal[~right]
    if not len(above) or not len(below):
        return float("nan")
    return float(stats.mannwhitneyu(above, below, method="asymptotic").statistic / (len(above) * len(below)))


def _resampled(statistic: Callable[[np.ndarray], float], users: np.ndarray) -> Interval:
    """A statistic of rows, with its 95% percentile interval; whole users are drawn."""
    everyone = np.arange(len(users))
    order = np.argsort(users, kind="stable")
    _, first = np.unique(users[order], return_index=True)
    rows_of = np.split(order, first[1:])
    generator = np.random.default_rng(0)
    draws = generator.integers(len(rows_of), size=(_RESAMPLES, len(rows_of)))
    drawn = [statistic(np.concatenate([rows_of[user] for user in draw])) for draw in draws]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return statistic(everyone), float(low), float(high)


def _mean(values: np.ndarray, users: np.ndarray) -> Interval:
    low, high = bootstrap_mean(values, users) if len(np.unique(users)) >= FEWEST else (np.nan, np.nan)
    return float(values.mean()), low, high


def _bands(ranks: np.ndarray, head: int, candidates: int) -> dict[str, np.ndarray]:
    """Which ranks `[n]` are in each band; a rank of 0, no rollout, is in none."""
    return {
        _span(1, head): (ranks >= 1) & (ranks <= head),
        _span(head + 1, candidates): (ranks > head) & (ranks <= candidates),
        f">{candidates}": ranks > candidates,
    }


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def join_seeds(tables: Sequence[Columns]) -> dict[str, np.ndarray]:
    """The columns of all seeds, one after the other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
