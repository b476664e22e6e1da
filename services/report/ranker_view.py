"""The ranker's quality and the stratified analysis as shown: lines and a table for a terminal, charts for a
page.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sluice.services.advise.verdict import examples_of
from sluice.services.report.charts import BLUE, GREEN, HeatCell, heat_map, reliability_chart

if TYPE_CHECKING:
    from rich.table import Table

# What a head's predictions and observations are, by column.
_SCALES = {"rating": "rating", "click": "click", "dwell_seconds": "log(1 + dwell seconds)"}
_LATER = {"control": "control", "best": "best checkpoint"}

Cells = Sequence[Mapping[str, Any]]


def quality_lines(quality: Mapping[str, Any] | None) -> list[str]:
    """The ranker's quality on validation; nothing for a ranker that was not judged."""
    if not quality:
        return []
    lines = [
        f"ranker on validation: AUC {quality['auc']:.4f}, NDCG@10 {quality['ndcg@10']:.4f}, HR@10 "
        f"{quality['hr@10']:.4f}, calibration error {quality['relevance']['ece']:.4f}"
    ]
    if exposed := exposure_rows(quality):
        areas = ", ".join(f"{row['auc']:.3f}" for row in exposed)
        lines.append(f"AUC by decile of items, the least shown first: {areas}")
    for head in head_rows(quality):
        lines.append(
            f"{head['scale']}: RMSE {head['ranker']:.4f} (user's mean {head['user_mean']:.4f}, item's mean "
            f"{head['item_mean']:.4f}), calibration error {head['ece']:.4f}"
        )
    return lines


def exposure_rows(quality: Mapping[str, Any] | None) -> list[dict[str, float]]:
    """One row per decile of items, the least shown first: how often an item was shown, examples, AUC and
    HR@10; nothing for a ranker of the release before.
    """
    rows: list[dict[str, float]] = (quality or {}).get("by_exposure", [])
    return rows


def head_rows(quality: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row per head: its scale, the errors of the ranker and of both baselines, and the calibration
    error.
    """
    judged = (quality or {}).get("heads", {})
    return [{"scale": _SCALES[column], **head["rmse"], "ece": head["ece"]} for column, head in judged.items()]


def calibration_charts(quality: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The calibration curve of the relevance scores and of every head."""
    if not quality:
        return []
    relevance = quality["relevance"]
    charts = [_curve("Next item", relevance, ("predicted probability", "share that was the next item"))]
    for column, judged in quality["heads"].items():
        labels = (
            ("predicted probability", "share clicked")
            if column == "click"
            else ("predicted mean", "actual mean")
        )
        charts.append(_curve(_SCALES[column].capitalize(), judged, labels))
    return charts


def heat_maps(cells: Cells) -> list[dict[str, Any]]:
    """The cells' examples, and what the control and the best checkpoint changed in each."""
    if not cells:
        return []
    examples = sum(examples_of(cell) for cell in cells)
    rows, columns = (
        sorted({cell[key] for cell in cells}, key=_first_place) for key in ("policy_rank", "ranker_rank")
    )
    labels = ("ranker's rank of the user's validation targets", "policy's rank of them")

    def chart(title: str, value: str, note: str, limit: float, color: str = GREEN) -> dict[str, Any]:
        drawn = {
            (cell["policy_rank"], cell["ranker_rank"]): HeatCell(
                value=_value(cell, value), text=_text(cell, value)
            )
            for cell in cells
        }
        svg = heat_map(drawn, rows=rows, columns=columns, labels=labels, limit=limit, salt=title, color=color)
        return {"title": title, "svg": svg, "note": note}

    note = "Test examples" + (", and how many of them the gate would admit." if _gated(cells) else ".")
    charts = [chart("Test examples", "examples", note, max(examples_of(cell) for cell in cells), BLUE)]
    for kind, title, unit in (
        ("hr", "HR@10", "Change of the share of examples hit."),
        ("gain", "rank of the target", "Mean log2(rank at the start / rank now): +1 is a rank halved."),
    ):
        limit = max(abs(_value(cell, f"{name}_{kind}")) for cell in cells for name in _LATER)
        charts += [
            chart(f"Start to {label}: {title}", f"{name}_{kind}", unit, limit)
            for name, label in _LATER.items()
        ]
    charts[0]["note"] += f" {examples:,} in all."
    return charts


def cells_table(cells: Cells) -> "Table":
    """The cells for a terminal."""
    from rich.table import Table

    table = Table(
        title="Test HR@10 by where start and ranker placed the user's validation targets",
        title_justify="left",
    )
    for title in ("start", "ranker"):
        table.add_column(title)
    for title in ("users", "examples", "admitted", "HR@10", "control", "best", "best - control"):
        table.add_column(title, justify="right")
    for cell in cells:
        changes = [_signed(_value(cell, f"{name}_hr")) for name in _LATER]
        admitted = f"{100 * cell['admitted']:.0f}%" if "admitted" in cell else "-"
        start = f"{cell['start_hr@10']:.3f}"
        counts = (str(cell["users"]), str(examples_of(cell)))
        bands = (cell["policy_rank"], cell["ranker_rank"])
        table.add_row(*bands, *counts, admitted, start, *changes, _difference(cell))
    return table


def _difference(cell: Mapping[str, Any]) -> str:
    """best - control with its interval, which a cell of few users has not."""
    difference = _signed(cell["best_hr@10"] - cell["control_hr@10"])
    interval = cell.get("best-control_interval")
    return f"{difference} [{_signed(interval[0])}, {_signed(interval[1])}]" if interval else difference


def _first_place(band: str) -> int:
    """What bands such as 1-10, 11-50, >50 and not in 50 are sorted by."""
    return int(re.findall(r"\d+", band)[0])


def _gated(cells: Cells) -> bool:
    return all("admitted" in cell for cell in cells)


def _value(cell: Mapping[str, Any], value: str) -> float:
    """`examples`, or the change from the start to a later policy: `<policy>_hr`, `<policy>_gain`."""
    if value == "examples":
        return float(examples_of(cell))
    name, _, kind = value.partition("_")
    if kind == "hr":
        return float(cell[f"{name}_hr@10"] - cell["start_hr@10"])
    return float(cell[f"{name}_rank_gain"])


def _text(cell: Mapping[str, Any], value: str) -> str:
    if value != "examples":
        return _signed(_value(cell, value))
    return f"{examples_of(cell):,}" + (
        f"\n{100 * cell['admitted']:.0f}% admitted" if "admitted" in cell else ""
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _curve(title: str, judged: Mapping[str, Any], labels: tuple[str, str]) -> dict[str, Any]:
    curve = judged["curve"]
    return {
        "title": title,
        "svg": reliability_chart(curve["predicted"], curve["observed"], curve["events"], labels, salt=title),
        "note": f"Expected calibration error {judged['ece']:.4f} over {judged['events']:,} events.",
    }
