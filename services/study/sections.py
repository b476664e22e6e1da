"""Parts of a study's page beside its tables of rows: strata, the test of the gate, frontier, admission."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from sluice.learner.gate.gate import whole_places
from sluice.services.report.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    TEAL,
    Series,
    Spot,
    line_chart,
    plane_chart,
)
from sluice.services.run.metrics_file import read_metrics
from sluice.services.study.analysis import LOGGED, WEIGHTED_HR, Findings, Pooled
from sluice.services.study.arm import METRICS
from sluice.services.study.judges.lists import TRUE_CTR
from sluice.services.study.results import cells_of, prompts_directory
from sluice.services.study.settings import StudyConfig, arm_config, set_config
from sluice.services.study.start_rollouts import PROMPTS, gate_of
from sluice.services.study.strata import (
    BY_USER,
    PUBLISHED,
    GateTest,
    Interval,
    Stratum,
    find_strata,
    join_seeds,
    run_gate_tests,
)

_COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, GREY)
_ANY_RATE = 0.5  # stands for the rate of an arm that admits by chance, when only its other settings are read
_RATES = 7  # lines that a chart can tell apart
_FEWEST_ROWS = 4  # policies whose order says something
_NEARLY_ALL = 0.95  # of the prompts are right


def read_prompts(study: StudyConfig, of_set: str, pooled: Pooled) -> dict[str, np.ndarray] | None:
    """The columns of `measure_prompts` for the examples of `pooled`; None where a seed has none."""
    files = [prompts_directory(study, of_set, seed) / PROMPTS for seed in study.seeds]
    if not all(file.is_file() for file in files):
        return None
    parts = []
    for file, examples in zip(files, np.split(np.arange(len(pooled.users)), pooled.ends[:-1]), strict=True):
        table = pq.read_table(file)
        columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
        place = {pair: row for row, pair in enumerate(zip(columns["user"], columns["position"], strict=True))}
        judged = zip(pooled.users[examples], pooled.positions[examples], strict=True)
        rows = [place[pair] for pair in judged]
        parts.append({name: values[rows] for name, values in columns.items()})
    return join_seeds(parts)


def gate_tests(study: StudyConfig, of_set: str, findings: Findings) -> list[GateTest]:
    """The test of the gate; empty where nobody knows the truth."""
    pooled = findings.pooled(of_set, next(iter(findings.rows(of_set).values())))
    prompts = read_prompts(study, of_set, pooled)
    if prompts is None or np.isnan(prompts["measuring_agreement"]).all():
        return []
    return run_gate_tests(prompts, _trust_cut(study, of_set), pooled.groups)


def gate_lines(tests: Sequence[GateTest]) -> list[dict[str, Any]]:
    """The table of the gate's test."""
    return [
        {
            "label": test.gate,
            "cells": [
                f"{test.admitted:.1%}",
                *(f"{share:.1%}" for share in test.by_group.values()),
                _interval(test.precision, percent=True),
                f"{test.agreement:+.2f}",
                _interval(test.auc),
            ],
        }
        for test in tests
    ]


def gate_heads(tests: Sequence[GateTest]) -> list[str]:
    """The titles of its columns, the first for the gate."""
    groups = list(tests[0].by_group) if tests else []
    return ["gate", "admits", *(f"of {group}" for group in groups), "right of those", "agreement", "AUC"]


def gate_sentence(of_set: str, tests: Sequence[GateTest]) -> str | None:
    """Which gate knows best where the ranker is right, and whether it knows anything."""
    own = [test for test in tests if test.gate in (PUBLISHED, BY_USER)]
    if not own:
        return None
    base = tests[0].precision[0]
    told = "; ".join(
        f"{_title(test.gate)} admits {test.admitted:.0%} of the prompts, "
        f"{test.precision[0]:.0%} of them right{_area(test)}"
        for test in own
    )
    blind = [test.gate for test in own if test.auc[1] <= 0.5]
    end = f" No better than chance: {', '.join(blind)}." if blind else ""
    if base > _NEARLY_ALL:
        end = " So there is little for a gate to tell apart."
    told = told[0].upper() + told[1:]
    return f"{of_set}: the ranker orders {base:.0%} of the prompts as the truth does. {told}.{end}"


def choosing_sentence(of_set: str, findings: Findings) -> str | None:
    """Which metric of the log orders the arms as the truth does; None where the truth or weights are missing.

    Spearman's rank correlation over the start and the arms, of test.
    """
    pooled = [findings.pooled(of_set, arm) for row, arm in findings.rows(of_set).items() if row == arm]
    if len(pooled) < _FEWEST_ROWS or not {TRUE_CTR, WEIGHTED_HR} <= set(pooled[0].values):
        return None
    truth = [arm.mean(TRUE_CTR) for arm in pooled]
    logged, weighted = (
        float(stats.spearmanr(truth, [arm.mean(metric) for arm in pooled]).statistic)
        for metric in (LOGGED[0], WEIGHTED_HR)
    )
    if np.isnan(logged) or np.isnan(weighted):  # all policies have the same
        return None
    return (
        f"{of_set}: over {len(pooled)} policies true click-through has the rank correlation {logged:+.2f} "
        f"with logged HR@10, and {weighted:+.2f} with HR@10 weighted by inverse propensity."
    )


def strata_tables(study: StudyConfig, of_set: str, findings: Findings) -> list[dict[str, Any]]:
    """For each row of `study.strata` its change against the first of `against`, by stratum."""
    rows, other = findings.rows(of_set), study.against[0]
    if not study.strata or other not in rows:
        return []
    before = findings.pooled(of_set, rows[other])
    prompts = read_prompts(study, of_set, before)
    if prompts is None:
        return []
    config = set_config(study, of_set, study.seeds[0])
    candidates = config.rollout.decode.candidates
    tables = []
    for row in study.strata:
        if row not in rows or row == other:
            continue
        now = findings.pooled(of_set, rows[row])
        metrics = [name for name in (TRUE_CTR, "hr@10") if name in now.values]
        strata = find_strata(
            prompts,
            head=whole_places(gate_of(config).tau, candidates),
            candidates=candidates,
            changes={name: now.values[name] - before.values[name] for name in metrics},
            ranks=(before.ranks, now.ranks),
            width=config.evaluation.beam_width,
        )
        tables.append({"title": f"{row} - {other}", "metrics": metrics, "strata": strata})
    return tables


def strata_lines(strata: Sequence[Stratum]) -> list[dict[str, Any]]:
    """The table of the strata."""
    return [
        {
            "label": f"{stratum.policy_band} / {stratum.ranker_band}",
            "cells": [
                str(stratum.examples),
                f"{stratum.admitted:.0%}",
                *(_interval(change, signed=True) for change in stratum.changes.values()),
            ],
        }
        for stratum in strata
    ]


def frontier(findings: Findings, table: list[dict[str, Any]], of_set: str) -> str | None:
    """The rows in the retrieval-validity plane, means over seeds."""
    spots = []
    for index, (row, arm) in enumerate(findings.rows(of_set).items()):
        told = [
            line
            for line in table
            if (line["set"], line["arm"], line["checkpoint"]) == (of_set, arm, findings.study.checkpoint)
        ]
        if row == arm:
            x, y = (float(np.mean([line[name] for line in told])) for name in ("hallucination", "hr@10"))
            spots.append(Spot(label=row, color=_COLORS[index % len(_COLORS)], x=x, y=y))
    return plane_chart([], spots, "frontier" + of_set)


def admission_chart(study: StudyConfig, of_set: str) -> str | None:
    """The share that each gate admits, over the steps of the first seed."""
    series: list[Series] = []
    for cell in cells_of(study):
        if cell.of_set == of_set and cell.seed == study.seeds[0] and (cell.directory / METRICS).is_file():
            points = [
                (float(row["step"]), float(row["gate_rate"]))
                for row in read_metrics(cell.directory / METRICS, "step")
                if row.get("gate_rate") is not None
            ]
            if points and any(rate < 1 for _, rate in points):
                color = _COLORS[len(series) % len(_COLORS)]
                series.append(Series(label=cell.arm, color=color, points=points, smooth=True))
    return line_chart(series[:_RATES], "share of prompts admitted", percent=True)


def _trust_cut(study: StudyConfig, of_set: str) -> float | None:
    for arm in study.arms:
        trust = arm_config(study, of_set, arm, study.seeds[0], _ANY_RATE).trust
        if trust is not None:
            return trust.above
    return None


def _area(test: GateTest) -> str:
    return "" if np.isnan(test.auc[0]) else f" (AUC {test.auc[0]:.2f})"


def _title(gate: str) -> str:
    return "the published gate" if gate == PUBLISHED else f"the gate {gate}"


def _interval(value: Interval, *, signed: bool = False, percent: bool = False) -> str:
    form = f"{'+' if signed else ''}.{'1%' if percent else '4f' if signed else '2f'}"
    middle, low, high = value
    return f"{middle:{form}}" if np.isnan(low) else f"{middle:{form}} [{low:{form}}, {high:{form}}]"
