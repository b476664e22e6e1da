"""`report.html` of a run directory, one self-contained page from its summary and metrics; and the terminal's
table.

Whatever a run has not left is shown as "not measured", so a page can be written at any time.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluice.catalog.errors import RunError
from sluice.catalog.files import read_whole_lines, write_atomically
from sluice.services.report import ranker_view
from sluice.services.report.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Series,
    Spot,
    line_chart,
    plane_chart,
    stacked_bar,
    time_bars,
)

if TYPE_CHECKING:
    from rich.table import Table

ROWS = {
    "start": "start",
    "control": "control (NLL alone), best",
    "control_last": "control, last",
    "best": "best checkpoint",
    "last": "last checkpoint",
    "popularity": "popularity",
    "itemknn": "ItemKNN",
    "ranker": "the ranker itself",
}
COLUMNS = {
    "hr@1": "HR@1",
    "hr@5": "HR@5",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
    "hallucination": "hallucination",
}
_COLORS = {"start": GREY, "control": ORANGE, "best": GREEN, "last": BLUE}

Rows = list[dict[str, Any]]


def write_report(run_directory: Path) -> Path:
    """Write `report.html` from whatever the run directory holds; returns its path.

    Raises:
        RunError: the directory has neither a summary nor metrics, so it is no run directory.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sluice.services.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(report_context(run_directory))
    path = run_directory / "report.html"
    write_atomically(path, page)
    return path


def report_context(run_directory: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    summary = _json(run_directory / "summary.json") or {}
    metrics, control = (
        _lines(run_directory / "metrics.jsonl"),
        _lines(run_directory / "metrics-control.jsonl"),
    )
    if not summary and not metrics and not control:
        raise RunError(
            f"{run_directory} has no summary.json and no metrics: give a run directory, "
            f"<output>/<name>-seed<seed>"
        )
    config = run_directory / "config.yaml"
    steps, evaluations = _of_kind(metrics, "step"), _of_kind(metrics, "eval")
    control_evaluations = _of_kind(control, "eval")
    return {
        "name": run_directory.name,
        "summary": summary,
        "groups": group_rows(summary),
        "headline": headline_rows(summary),
        "differences": difference_rows(summary),
        "stratified": summary.get("stratified") or [],
        "heat_maps": ranker_view.heat_maps(summary.get("stratified") or []),
        "ranker": summary.get("ranker") or {},
        "heads": ranker_view.head_rows(summary.get("ranker")),
        "calibration": ranker_view.calibration_charts(summary.get("ranker")),
        "accounting": accounting_rows(summary),
        "throughput": summary.get("throughput") or {},
        "gate": summary.get("gate") or {},
        "curves": _curves(summary, evaluations, control_evaluations),
        "training": _training(steps),
        "time": time_bars(summary.get("time") or {}),
        "wall": stacked_bar(summary.get("wall_s") or {}, "s"),
        "config": config.read_text() if config.is_file() else None,
        "manifest": json.dumps(_json(run_directory / "manifest.json") or {}, indent=1),
        "percent": format_percent,
        "number": format_number,
    }


def headline_rows(summary: Mapping[str, Any]) -> Rows:
    """One row per policy and baseline: its name, its cells by column, and the interval of HR@10 if there is
    one.
    """
    metrics, intervals = summary.get("metrics") or {}, (summary.get("intervals") or {}).get("hr@10") or {}
    return [
        {
            "key": key,
            "label": label,
            "cells": [_cell(metrics[key], column, key) for column in COLUMNS],
            "interval": intervals.get(key),
        }
        for key, label in ROWS.items()
        if key in metrics
    ]


def group_rows(summary: Mapping[str, Any]) -> str | None:
    """What a group of rollouts was, since beams are not samples; None when the run had none."""
    decode = summary.get("decode")
    if not decode:
        return None
    kind = {
        "sample": "{candidates} independent samples",
        "beam": "the {candidates} likeliest sequences (beams, not samples)",
        "stochastic_beam": "{candidates} sequences sampled without replacement (stochastic beams)",
    }[decode["kind"]]
    form = "constrained to the catalogue" if decode["constrained"] else "free"
    return f"{kind}, {form}, temperature {{temperature:g}}".format(**decode)


def difference_rows(summary: Mapping[str, Any]) -> Rows:
    """Paired differences `a - b` of HR@10 and NDCG@10 with their intervals, and whether these leave out
    zero.
    """
    metrics, rows = summary.get("metrics") or {}, []
    for metric, intervals in (summary.get("intervals") or {}).items():
        for pair, (low, high) in intervals.items():
            first, _, second = pair.partition("-")
            if (
                first in metrics
                and second in metrics
                and metric in metrics[first]
                and metric in metrics[second]
            ):
                verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
                rows.append(
                    {
                        "pair": f"{first} - {second}".replace("_", " "),
                        "metric": COLUMNS.get(metric, metric),
                        "difference": metrics[first][metric] - metrics[second][metric],
                        "low": low,
                        "high": high,
                        "verdict": verdict,
                    }
                )
    return rows


def accounting_rows(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The counts and whether issued = trained + stale + invalid + in flight holds."""
    counts = summary.get("accounting")
    if not counts:
        return None
    known = {name: counts.get(name, 0) for name in ("issued", "trained", "stale", "invalid", "in_flight")}
    total = sum(known.values()) - known["issued"]
    return {"counts": known, "total": total, "holds": total == known["issued"]}


def terminal_table(summary: Mapping[str, Any]) -> "Table":
    """The headline table for a terminal."""
    from rich.table import Table

    table = Table(
        title=f"{summary.get('dataset', '')} {summary.get('objective', '')}: test users", title_justify="left"
    )
    table.add_column("")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in headline_rows(summary):
        style = "bold" if row["key"] == "best" else None
        table.add_row(row["label"], *row["cells"], style=style)
    return table


def terminal_lines(summary: Mapping[str, Any], width: int = 110) -> list[str]:
    """The headline table and the paired differences as plain lines, for a job's log."""
    import io

    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(terminal_table(summary))
    table = [line.rstrip() for line in buffer.getvalue().splitlines()]
    compared = [
        f"{row['metric']} {row['pair']}: {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] "
        f"{row['verdict']}"
        for row in difference_rows(summary)
        if row["metric"] == COLUMNS["hr@10"]
    ]
    cells = io.StringIO()
    Console(file=cells, width=width, color_system=None).print(
        ranker_view.cells_table(summary.get("stratified") or [])
    )
    stratified = (
        [line.rstrip() for line in cells.getvalue().splitlines()] if summary.get("stratified") else []
    )
    return [*table, *compared, *stratified]


def format_percent(value: float | None) -> str:
    """A share as percent."""
    return "not measured" if value is None else f"{100 * value:.2f}%"


def format_number(value: float | None) -> str:
    """A figure with as many digits as it needs."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _cell(values: Mapping[str, float], column: str, row: str) -> str:
    if column == "hallucination":
        # What ranks the catalogue itself cannot make an item up.
        return "-" if row in ("popularity", "itemknn", "ranker") else format_percent(values.get(column))
    return "-" if values.get(column) is None else f"{values[column]:.4f}"


def _curves(summary: Mapping[str, Any], evaluations: Rows, control: Rows) -> Rows:
    metrics = summary.get("metrics") or {}
    intervals = (summary.get("intervals") or {}).get("hr@10") or {}

    def both(field: str) -> list[Series]:
        return [
            Series(label="post-training", color=BLUE, points=_points(evaluations, field), markers=True),
            Series(label="control", color=ORANGE, points=_points(control, field), markers=True),
        ]

    def path(label: str, color: str, rows: Rows) -> Series:
        points = [
            (row["hallucination"], row["hr@10"]) for row in rows if {"hallucination", "hr@10"} <= row.keys()
        ]
        return Series(label=label, color=color, points=points)

    spots = [
        Spot(
            label=name,
            color=color,
            x=metrics[name]["hallucination"],
            y=metrics[name]["hr@10"],
            y_interval=tuple(intervals[name]) if name in intervals else None,
        )
        for name, color in _COLORS.items()
        if {"hallucination", "hr@10"} <= metrics.get(name, {}).keys()
    ]
    paths = [path("post-training", BLUE, evaluations), path("control", ORANGE, control)]
    return [
        _chart("HR@10 on validation", line_chart(both("hr@10"), "HR@10")),
        _chart(
            "Hallucination on validation",
            line_chart(both("hallucination"), "share of the top 10", percent=True),
        ),
        _chart(
            "Retrieval-validity plane while training (validation)",
            plane_chart(paths, [], "valid"),
            "Up is better retrieval, left is fewer made-up items. Dots grow with the training step.",
        ),
        _chart(
            "Retrieval-validity plane at the end (test)",
            plane_chart([], spots, "test"),
            "Bars are 95% bootstrap intervals over users, where computed.",
        ),
    ]


def _training(steps: Rows) -> Rows:
    def curve(label: str, field: str, color: str) -> Series:
        return Series(label=label, color=color, points=_points(steps, field), smooth=True)

    charts: list[tuple[str, list[Series], str, bool]] = [
        (
            "Gate and its two halves",
            [
                curve("gate", "gate_rate", BLUE),
                curve("difficulty", "difficulty", ORANGE),
                curve("discriminability", "discriminability", GREEN),
            ],
            "share of prompts",
            True,
        ),
        (
            "Ranker's reward of prompts that the gate",
            [curve("admits", "reward_admitted", GREEN), curve("refuses", "reward_refused", RED)],
            "mean reward",
            False,
        ),
        ("Loss: supervised part", [curve("NLL", "nll", BLUE)], "nats", False),
        ("Loss: group-relative part", [curve("GRPO", "grpo", PURPLE)], "loss", False),
        (
            "Candidates",
            [curve("hit the ground truth", "hit_share", GREEN), curve("are no item", "invalid_share", RED)],
            "share",
            True,
        ),
        ("Staleness at training", [curve("weight versions", "staleness", PURPLE)], "weight versions", False),
        ("Policy ratio", [curve("mean ratio", "ratio_mean", BLUE)], "ratio", False),
        ("Clipped tokens", [curve("clipped", "clip_share", RED)], "share of tokens", True),
        ("KL to the starting policy", [curve("KL", "kl", ORANGE)], "nats per token", False),
        ("Entropy of the policy", [curve("entropy", "entropy", GREY)], "nats per token", False),
    ]
    return [_chart(title, line_chart(series, unit, percent=share)) for title, series, unit, share in charts]


def _chart(title: str, svg: str | None, note: str = "") -> dict[str, Any]:
    return {"title": title, "svg": svg, "note": note}


def _points(rows: Rows, field: str) -> list[tuple[float, float]]:
    return [(row["step"], row[field]) for row in rows if row.get(field) is not None]


def _of_kind(rows: Rows, kind: str) -> Rows:
    return [row for row in rows if row.get("kind") == kind]


def _lines(path: Path) -> Rows:
    return [json.loads(line) for line in read_whole_lines(path).lines]


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
