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
from sluice.learner.evaluation.exposure import WEIGHTED
from sluice.services.advise import verdict
from sluice.services.advise.advice import closing_sentences
from sluice.services.report import ranker_view
from sluice.services.report.charts import stacked_bar, time_bars
from sluice.services.report.curves import training_curves, validation_curves

if TYPE_CHECKING:
    from rich.table import Table

ROWS = {
    "start": "start",
    "control": "control (NLL alone), best",
    "control_last": "control, last",
    "best": "best checkpoint",
    "last": "last checkpoint",
    "mixture": "mixture (no gate), best",
    "mixture_last": "mixture, last",
    "random_gate": "random gate, best",
    "random_gate_last": "random gate, last",
    "sft_all": "SFT on all logs",
    "popularity": "popularity",
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "ranker": "the ranker itself",
}
BASELINES = ("popularity", "itemknn", "ease", "ranker")  # rank the catalogue, so they cannot make an item up
COLUMNS = {
    "hr@1": "HR@1",
    "hr@5": "HR@5",
    "hr@10": "HR@10",
    "hr@50": "HR@50",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
    "hallucination": "hallucination",
    "ips_hr@10": "weighted HR@10",
    "ips_ndcg@10": "weighted NDCG@10",
}
MAIN_COLUMNS = ("hr@10", "hallucination", "ips_hr@10")  # those that a narrow screen shows
BREADTH = {
    "coverage": "coverage",
    "head_share": "head items",
    "entropy": "entropy, nats",
    "duplicates": "duplicates",
}
_SHORT = {
    "control": "control best",
    "control_last": "control last",
    "mixture": "mixture best",
    "mixture_last": "mixture last",
    "random_gate": "random gate best",
    "random_gate_last": "random gate last",
    "sft_all": "SFT on all logs",
    "itemknn": "ItemKNN",
    "ease": "EASE",
}

Rows = list[dict[str, Any]]


def write_report(run_directory: Path) -> Path:
    """Write `report.html` from whatever the run directory holds; returns its path.

    Raises:
        RunError: the directory has neither a summary nor metrics, so it is no run directory.
    """
    path = run_directory / "report.html"
    write_atomically(path, render("sluice.services.report", "report.html.j2", report_context(run_directory)))
    return path


def render(package: str, template: str, context: Mapping[str, Any]) -> str:
    """A page from a template of a package; `style.css` of the report can be included."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in (package, "sluice.services.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


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
        "sentences": closing_sentences(summary, metrics),
        "examples": verdict.count_examples(summary),
        "columns": {key: (title, key in MAIN_COLUMNS) for key, title in shown_columns(summary).items()},
        "headline": headline_rows(summary),
        "has_ease": "ease" in (summary.get("metrics") or {}),
        "breadth_columns": list(BREADTH.values()),
        "breadth": breadth_rows(summary),
        "differences": difference_rows(summary),
        "stratified": summary.get("stratified") or [],
        "heat_maps": ranker_view.heat_maps(summary.get("stratified") or []),
        "ranker": summary.get("ranker") or {},
        "heads": ranker_view.head_rows(summary.get("ranker")),
        "exposed": ranker_view.exposure_rows(summary.get("ranker")),
        "calibration": ranker_view.calibration_charts(summary.get("ranker")),
        "accounting": accounting_rows(summary),
        "throughput": summary.get("throughput") or {},
        "gate": summary.get("gate") or {},
        "curves": validation_curves(summary, evaluations, control_evaluations),
        "training": training_curves(steps),
        "time": time_bars(summary.get("time") or {}),
        "wall": stacked_bar(summary.get("wall_s") or {}, "s"),
        "config": config.read_text() if config.is_file() else None,
        "manifest": json.dumps(_json(run_directory / "manifest.json") or {}, indent=1),
        "percent": format_percent,
        "number": format_number,
    }


def shown_columns(summary: Mapping[str, Any]) -> dict[str, str]:
    """The titles of the headline table by column; those of weighted metrics where the run has these."""
    measured = {name for row in (summary.get("metrics") or {}).values() for name in row}
    return {
        name: title for name, title in COLUMNS.items() if name in measured or not name.startswith(WEIGHTED)
    }


def headline_rows(summary: Mapping[str, Any]) -> Rows:
    """One row per policy and baseline: its name, its cells by column, and intervals by column where there
    are some.
    """
    metrics, intervals = summary.get("metrics") or {}, summary.get("intervals") or {}
    columns = shown_columns(summary)
    return [
        {
            "key": key,
            "label": label,
            "kind": "best" if key == "best" else "baseline" if key in BASELINES else "",
            "cells": {column: _cell(metrics[key], column, key) for column in columns},
            "intervals": {
                name: intervals[name][key] for name in MAIN_COLUMNS if key in intervals.get(name, {})
            },
        }
        for key, label in ROWS.items()
        if key in metrics
    ]


def breadth_rows(summary: Mapping[str, Any]) -> Rows:
    """How broad the lists of each row are; nothing for a summary of the release before."""
    metrics = summary.get("metrics") or {}
    return [
        {
            "label": label,
            "kind": "best" if key == "best" else "baseline" if key in BASELINES else "",
            "cells": [_breadth_cell(metrics[key].get(column), column) for column in BREADTH],
        }
        for key, label in ROWS.items()
        if BREADTH.keys() <= metrics.get(key, {}).keys()
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
                judged = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
                rows.append(
                    {
                        "pair": f"{_SHORT.get(first, first)} - {_SHORT.get(second, second)}",
                        "metric": COLUMNS.get(metric, metric),
                        "difference": metrics[first][metric] - metrics[second][metric],
                        "low": low,
                        "high": high,
                        "verdict": judged,
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
        title=f"{summary.get('dataset', '')} {summary.get('objective', '')}: "
        f"{verdict.count_examples(summary)}",
        title_justify="left",
    )
    table.add_column("")
    for title in shown_columns(summary).values():
        table.add_column(title, justify="right")
    for row in headline_rows(summary):
        style = "bold" if row["key"] == "best" else None
        table.add_row(row["label"], *row["cells"].values(), style=style)
    return table


def breadth_table(summary: Mapping[str, Any]) -> "Table":
    """How broad the lists are, for a terminal."""
    from rich.table import Table

    table = Table(title="What the ten best places show", title_justify="left")
    table.add_column("")
    for title in BREADTH.values():
        table.add_column(title, justify="right")
    for row in breadth_rows(summary):
        table.add_row(row["label"], *row["cells"], style="bold" if row["kind"] == "best" else None)
    return table


def terminal_lines(summary: Mapping[str, Any], width: int = 110) -> list[str]:
    """The headline table and the paired differences as plain lines, for a job's log."""
    compared = [
        f"{row['metric']} {row['pair']}: {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] "
        f"{row['verdict']}"
        for row in difference_rows(summary)
        if row["metric"] in (COLUMNS["hr@10"], COLUMNS["ips_hr@10"])
    ]
    cells = summary.get("stratified") or []
    return [
        *_plain(terminal_table(summary), width),
        *compared,
        *(_plain(breadth_table(summary), width) if breadth_rows(summary) else []),
        *(_plain(ranker_view.cells_table(cells), width) if cells else []),
    ]


def _plain(table: "Table", width: int) -> list[str]:
    import io

    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


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
        return "-" if row in BASELINES else format_percent(values.get(column))
    return "-" if values.get(column) is None else f"{values[column]:.4f}"


def _breadth_cell(value: float | None, column: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if column == "entropy" else format_percent(value)


def _of_kind(rows: Rows, kind: str) -> Rows:
    return [row for row in rows if row.get("kind") == kind]


def _lines(path: Path) -> Rows:
    return [json.loads(line) for line in read_whole_lines(path).lines]


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
