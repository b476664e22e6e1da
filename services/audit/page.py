"""The audit as shown: `audit.html`, one self-contained page, and lines for the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sluice.catalog.files import write_atomically
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.figures import Audit
from sluice.services.audit.rules import CHANCE, verdict
from sluice.services.audit.suggest import GateCell, choose_gate
from sluice.services.report.charts import BLUE, HeatCell, Interval, heat_map, interval_chart, stacked_bar
from sluice.services.report.report import render

METRICS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}
RATES = {
    "rate": "admitted by the gate",
    "difficulty": "hard for the policy (difficulty)",
    "discriminability": "told apart by the ranker (discriminability)",
    "ranker_agrees": "of that: the logged item is in the ranker's head",
    "distractors_below": "of that: all distractors are below",
    "trusted": "of users whom the ranker knows (trust)",
}
DISAGREEMENT = {
    "other_best": ("the ranker's best item is not the policy's", Estimate.percent),
    "rank_correlation": ("rank correlation of both over the list (Spearman)", Estimate.plain),
    "policy_right": ("the policy's best is the logged item", Estimate.percent),
    "ranker_right": ("the ranker's best is the logged item", Estimate.percent),
}
Rows = list[dict[str, Any]]


def write_page(path: Path, audit: Audit) -> None:
    """Write the HTML page."""
    write_atomically(path, render("sluice.services.audit", "audit.html.j2", page_context(audit)))


def page_context(audit: Audit) -> dict[str, Any]:
    """Everything that the template shows."""
    return {
        "audit": audit,
        "sentences": verdict(audit),
        "bounds": bound_rows(audit),
        "start": {title: audit.bound.start[name] for name, title in METRICS.items()},
        "curve": _curve(audit),
        "rates": [(RATES[name], estimate.percent()) for name, estimate in audit.rates.items()],
        "gate_chart": _gate_chart(audit.cells, audit.candidates),
        "chosen": choose_gate(audit.cells),
        "bands": [
            {"title": title, "rows": _band_rows(bands), "svg": _band_chart(title, bands)}
            for title, bands in audit.bands.items()
        ],
        "area": audit.area.plain(),
        "known": known_rows(audit),
        "trust": stacked_bar(audit.trust_counts, "users") if audit.trust_counts else None,
        "disagreement": [
            (text, show(audit.disagreement[name])) for name, (text, show) in DISAGREEMENT.items()
        ],
    }


def bound_rows(audit: Audit) -> Rows:
    """What re-ranking adds, for everybody and where the ranker knows the user."""
    bounds = {"all prompts": audit.bound}
    if audit.known_bound is not None:
        bounds["prompts of trusted users alone"] = audit.known_bound
    return [
        {"label": label, "metric": title, "gain": bound.gain[name].signed(), "beta": _betas(bound.betas)}
        for label, bound in bounds.items()
        for name, title in METRICS.items()
    ]


def known_rows(audit: Audit) -> list[tuple[str, str, str]]:
    """The prompts above the cut and the others: label, share, area."""
    known = audit.known
    if known is None:
        return []
    return [
        (f"{known.by} above {known.above:g}", f"{known.share:.1%}", known.above_area.plain()),
        (f"{known.by} up to {known.above:g}", f"{1 - known.share:.1%}", known.below_area.plain()),
    ]


def terminal_lines(audit: Audit) -> list[str]:
    """The figures, then the verdict."""
    cell = choose_gate(audit.cells)
    lines = [f"{audit.prompts:,} validation prompts of {audit.users:,} users; the ranker is {audit.ranker}"]
    lines += [
        f"re-ranked by log pi + r / beta, {row['label']}: {row['metric']} {row['gain']} (beta {row['beta']})"
        for row in bound_rows(audit)
    ]
    lines += [f"{RATES[name]}: {estimate.percent()}" for name, estimate in audit.rates.items()]
    lines.append(f"AUC of the logged item against the candidates: {audit.area.plain()}")
    lines += [f"AUC, {label} ({share} of the prompts): {area}" for label, share, area in known_rows(audit)]
    lines += [f"{text}: {show(audit.disagreement[name])}" for name, (text, show) in DISAGREEMENT.items()]
    if audit.trust_counts:
        counts = ", ".join(f"{name} {count}" for name, count in audit.trust_counts.items())
        lines.append(f"users by trust: {counts}")
    if cell is not None:
        lines.append(f"gate next to what serves: tau {cell.tau:g}, rho {cell.rho:g}, admits {cell.rate:.1%}")
    return [*lines, *verdict(audit)]


def _betas(betas: Sequence[float]) -> str:
    return " and ".join("none" if math.isinf(beta) else f"{beta:.3g}" for beta in betas)


def _curve(audit: Audit) -> str | None:
    shown = [
        Interval(
            label=f"beta {beta:.3g}",
            value=gains["hr@10"].value,
            low=gains["hr@10"].low,
            high=gains["hr@10"].high,
        )
        for beta, gains in audit.bound.curve
        if not math.isinf(beta)
    ]
    return interval_chart(shown, "HR@10 less that of the start, 95% over users", "bound")


def _gate_chart(cells: Sequence[GateCell], candidates: int) -> str | None:
    if not cells:
        return None
    drawn: Mapping[tuple[str, str], HeatCell] = {
        (f"{cell.tau:g}", f"{cell.rho:g}"): HeatCell(value=cell.rate, text=_cell_text(cell)) for cell in cells
    }
    rows, columns = (list(dict.fromkeys(key[side] for key in drawn)) for side in (0, 1))
    labels = ("rho", f"tau (of {candidates} candidates)")
    return heat_map(drawn, rows=rows, columns=columns, labels=labels, limit=1.0, salt="gate", color=BLUE)


def _cell_text(cell: GateCell) -> str:
    known = "" if math.isnan(cell.elsewhere) else f"\n{cell.elsewhere:.2f} elsewhere"
    return f"{cell.rate:.1%}{known}"


def _band_rows(bands: Sequence[Any]) -> Rows:
    return [{"label": band.label, "prompts": band.area.prompts, "area": band.area.plain()} for band in bands]


def _band_chart(title: str, bands: Sequence[Any]) -> str | None:
    shown = [
        Interval(
            label=band.label.partition(",")[0],
            value=band.area.value - CHANCE,
            low=band.area.low - CHANCE,
            high=band.area.high - CHANCE,
        )
        for band in bands
    ]
    return interval_chart(shown, "AUC less 1/2, 95% over users", title)
