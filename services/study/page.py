"""`report.html` and `report.md` of a study: of each data set the rows, their differences and their costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sluice.catalog.files import write_atomically
from sluice.services.report.charts import Interval, interval_chart
from sluice.services.report.report import BREADTH, render
from sluice.services.report.report import COLUMNS as OF_RUNS
from sluice.services.study.analysis import WEIGHTED_HR, Difference, Findings
from sluice.services.study.judges.lists import TRUE_CTR
from sluice.services.study.judges.reward import JUDGE, RETURN, SPREAD, TRUE_DWELL
from sluice.services.study.results import gather
from sluice.services.study.sections import (
    admission_chart,
    choosing_sentence,
    frontier,
    gate_heads,
    gate_lines,
    gate_sentence,
    gate_tests,
    strata_lines,
    strata_tables,
)
from sluice.services.study.settings import StudyConfig

COLUMNS = {
    TRUE_CTR: "true click-through",
    JUDGE: "judge",
    SPREAD: "judge's spread",
    RETURN: "judge's return",
    TRUE_DWELL: "true dwell",
    WEIGHTED_HR: OF_RUNS[WEIGHTED_HR],
    **OF_RUNS,
    "coverage": BREADTH["coverage"],
    "gate_rate": "admitted",
    "seconds": "seconds",
    "peak_mib": "MiB",
}
_NOTES = {
    TRUE_CTR: "True click-through: the mean chance that a user clicks an item of the top ten when looking "
    "at it, of all users and of each group.",
    JUDGE: "Judge: the reward that a held-out model predicts for the top ten, and the spread of its members.",
    RETURN: "Judge's return: its discounted reward of what would be recommended next, step by step.",
    TRUE_DWELL: "True dwell: the seconds to expect of a click on the top ten.",
    WEIGHTED_HR: "Weighted: by inverse propensity.",
    "gate_rate": "Admitted: share of prompts whose reward the gate lets in.",
    "seconds": "Seconds: training of an arm without validation.",
    "peak_mib": "MiB: the largest memory of its process.",
}
_SHARES = ("hallucination", "coverage", "gate_rate")
_PLAIN = ("seconds", "peak_mib")
_MAIN = (TRUE_CTR, "hr@10", "hallucination")  # what a narrow screen shows
_SMALL_P = 0.001
_STRATUM = ("policy / ranker", "examples", "admitted")
Rows = list[dict[str, Any]]


def write_page(study: StudyConfig) -> Path:
    """Write both from what is done so far; returns the HTML page.

    Raises:
        RunError: nothing is done yet.
    """
    table = pq.read_table(gather(study)).to_pylist()
    findings = Findings(study)
    sets = [_of_set(study, findings, table, of_set) for of_set in study.sets]
    context = {
        "name": study.name,
        "sentences": [sentence for shown in sets for sentence in shown["sentences"]],
        "sets": sets,
        "seeds": ", ".join(map(str, study.seeds)),
        "checkpoint": study.checkpoint,
        "commits": ", ".join(sorted({str(row["commit"])[:8] for row in table})),
    }
    page = study.directory / "report.html"
    write_atomically(page, render("sluice.services.study", "study.html.j2", context))
    write_atomically(page.with_suffix(".md"), _markdown(context))
    return page


def _of_set(study: StudyConfig, findings: Findings, table: Rows, of_set: str) -> dict[str, Any]:
    rows = findings.rows(of_set)
    differences = findings.differences(of_set) if len(rows) > 1 else []
    main = TRUE_CTR if any(found.metric == TRUE_CTR for found in differences) else "hr@10"
    known = [
        name for name in COLUMNS if any(row.get(name) is not None for row in table if row["set"] == of_set)
    ]
    groups = sorted({found.group for found in differences if found.group is not None})
    lines = []
    for row, arm in rows.items():
        told = [
            line
            for line in table
            if (line["set"], line["arm"], line["checkpoint"]) == (of_set, arm, study.checkpoint)
        ]
        cells = [_cell(name, [line.get(name) for line in told]) for name in known]
        of_groups = [f"{findings.pooled(of_set, arm).mean(TRUE_CTR, group):.4f}" for group in groups]
        lines.append(
            {"label": row if row == arm else f"{row} ({arm})", "cells": [*cells[:1], *of_groups, *cells[1:]]}
        )
    columns = [(COLUMNS[name], name in _MAIN) for name in known]
    tests = gate_tests(study, of_set, findings) if rows else []
    further = (gate_sentence(of_set, tests), choosing_sentence(of_set, findings))
    charts = [
        (f"{COLUMNS[main]} less that of {other}", _chart(of_set, differences, main, other))
        for other in study.against
    ]
    charts.append(("Retrieval-validity plane", frontier(findings, table, of_set)))
    charts.append((f"Prompts admitted, seed {study.seeds[0]}", admission_chart(study, of_set)))
    return {
        "name": of_set,
        "columns": [*columns[:1], *((f"of {group}", False) for group in groups), *columns[1:]],
        "rows": lines,
        "notes": [note for name, note in _NOTES.items() if name in known],
        "sentences": [
            _sentence(of_set, found)
            for metric in (main, JUDGE)
            for found in _leading(study, differences, metric)
        ]
        + [sentence for sentence in further if sentence is not None],
        "differences": [_line(found) for found in differences],
        "charts": [{"title": title, "svg": svg} for title, svg in charts],
        "gate": {"heads": gate_heads(tests), "rows": gate_lines(tests)},
        "strata": [
            {
                "title": shown["title"],
                "heads": [*_STRATUM, *(COLUMNS.get(name, name) for name in shown["metrics"]), "rank, log2"],
                "rows": strata_lines(shown["strata"]),
            }
            for shown in strata_tables(study, of_set, findings)
        ],
        "missing": len(study.arms) + 1 - len(set(rows) & {"start", *study.arms}),
    }


def _leading(study: StudyConfig, differences: Sequence[Difference], main: str) -> list[Difference]:
    """For each row that others are compared with: the largest difference to it.

    What nobody could run, an oracle, does not count.
    """
    leading = []
    oracles = [name for name, arm in study.arms.items() if arm.oracle]
    for other in study.against:
        of_other = [
            found
            for found in differences
            if (found.second, found.metric, found.group) == (other, main, None) and found.first not in oracles
        ]
        leading += sorted(of_other, key=lambda found: -found.mean)[:1]
    return leading


def _sentence(of_set: str, found: Difference) -> str:
    side = "better than" if found.low > 0 else "worse than" if found.high < 0 else "not distinguishable from"
    return (
        f"{of_set}: {found.first} is {side} {found.second}: {COLUMNS[found.metric]} {found.mean:+.4f} "
        f"[{found.low:+.4f}, {found.high:+.4f}], {found.relative:+.1%}, corrected p {_p(found.p)}."
    )


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= _SMALL_P else f"below {_SMALL_P}"


def _line(found: Difference) -> dict[str, str]:
    return {
        "pair": f"{found.first} - {found.second}",
        "metric": COLUMNS[found.metric] + (f", {found.group}" if found.group is not None else ""),
        "difference": f"{found.mean:+.4f}",
        "interval": f"{found.low:+.4f} to {found.high:+.4f}",
        "relative": f"{found.relative:+.1%}",
        "p": "" if found.group is not None else _p(found.p),
        "verdict": "better" if found.low > 0 else "worse" if found.high < 0 else "",
    }


def _chart(of_set: str, differences: Sequence[Difference], metric: str, other: str) -> str | None:
    shown = [
        Interval(
            label=found.first + ("" if found.group is None else f", {found.group}"),
            value=found.mean,
            low=found.low,
            high=found.high,
        )
        for found in differences
        if found.metric == metric and found.second == other
    ]
    return interval_chart(shown, f"{COLUMNS[metric]}, difference, 95% over users", of_set + metric + other)


def _cell(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = sum(known) / len(known)
    return f"{mean:.2%}" if name in _SHARES else f"{mean:.0f}" if name in _PLAIN else f"{mean:.4f}"


def _markdown(context: Mapping[str, Any]) -> str:
    lines = [f"- {sentence}" for sentence in context["sentences"]]
    for shown in context["sets"]:
        if not shown["rows"]:
            continue
        lines += [
            "",
            f"## {shown['name']}",
            "",
            *_table(["row", *(title for title, _ in shown["columns"])], shown["rows"]),
        ]
        heads = ["pair", "metric", "difference", "interval", "relative", "p"]
        cells = [
            {"label": row["pair"], "cells": [row[name] for name in heads[1:]]} for row in shown["differences"]
        ]
        lines += ["", *_table(heads, cells)]
        for table in (shown["gate"], *shown["strata"]):
            if table["rows"]:
                title = table.get("title", "what the gate knows")
                lines += ["", f"### {shown['name']}: {title}", "", *_table(table["heads"], table["rows"])]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Rows) -> list[str]:
    cells = [heads, ["---"] * len(heads), *([row["label"], *row["cells"]] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in cells]
