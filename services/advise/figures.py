"""The figures of a run that rules look at, from its summary and the lines of its metrics file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.services.advise.verdict import chosen_by, examples_of, hit_rate_change, judged_by, title_of

LATE = 5  # the last fifth of the steps says where a training has come to
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference with its 95% interval over users."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As `+0.0100 [+0.0040, +0.0160]`."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What rules decide by; None is what a run did not measure. HR@10 of test where nothing else is said."""

    judged_by: str = "HR@10"  # by which best and control are compared
    best_control: Change | None = None  # best checkpoint less the best of the control
    start_hr: float | None = None
    ranker_hr: float | None = None  # of the ranker itself over the full catalogue
    gate_rate: float | None = None
    admitted_change: float | None = None  # best - control over the strata, weighted by what the gate admits
    narrowed: str | None = None  # which figure of the lists fell from start to best, and by how much
    start_hallucination: float | None = None
    best_hallucination: float | None = None
    kl: float | None = None  # nats per token, over the last fifth of the steps; None: no KL term
    first_entropy: float | None = None  # nats, over the first fifth of the steps
    last_entropy: float | None = None
    first_reward: float | None = None  # of admitted groups
    last_reward: float | None = None
    staleness: float | None = None  # weight versions, mean over the steps
    stale_share: float | None = None  # groups dropped as stale / groups issued
    validations: int = 0
    chosen_by: str = "HR@10"  # of validation, by which a checkpoint is the best
    best_step: int | None = None
    last_step: int | None = None  # of the last validation
    best_valid_hr: float | None = None
    last_valid_hr: float | None = None


def read_figures(summary: Mapping[str, Any], lines: Rows) -> RunFigures:
    """The figures of a run.

    Args:
        summary: `summary.json`, or what there is of it.
        lines: those of `metrics.jsonl`.
    """
    metrics, accounting = summary.get("metrics") or {}, summary.get("accounting") or {}
    steps = [row for row in lines if row.get("kind") == "step"]
    change = hit_rate_change(summary, "best", "control")
    return RunFigures(
        judged_by=title_of(judged_by(summary)),
        chosen_by=title_of(chosen_by(summary)[0]),
        best_control=_change(change),
        start_hr=_metric(metrics, "start", "hr@10"),
        ranker_hr=_metric(metrics, "ranker", "hr@10"),
        gate_rate=(summary.get("gate") or {}).get("rate"),
        admitted_change=_admitted_change(summary.get("stratified") or []),
        narrowed=_narrowed(summary.get("breadth") or {}),
        start_hallucination=_metric(metrics, "start", "hallucination"),
        best_hallucination=_metric(metrics, "best", "hallucination"),
        kl=_mean(_last(steps), "kl"),
        first_entropy=_mean(_first(steps), "entropy"),
        last_entropy=_mean(_last(steps), "entropy"),
        first_reward=_mean(_first(steps), "reward_admitted"),
        last_reward=_mean(_last(steps), "reward_admitted"),
        staleness=_mean(steps, "staleness"),
        stale_share=accounting["stale"] / accounting["issued"] if accounting.get("issued") else None,
        **_validations([row for row in lines if row.get("kind") == "eval"], *chosen_by(summary)),
    )


def _validations(evaluations: Rows, metric: str, second: str) -> dict[str, Any]:
    """The best is that of the best checkpoint: of equals by the second metric, then the earlier."""
    if not evaluations:
        return {}
    best = max(evaluations, key=lambda row: (row[metric], row.get(second, 0.0), -row["step"]))
    return {
        "validations": len(evaluations),
        "best_step": best["step"],
        "last_step": evaluations[-1]["step"],
        "best_valid_hr": best[metric],
        "last_valid_hr": evaluations[-1][metric],
    }


def _narrowed(breadth: Mapping[str, Any]) -> str | None:
    """Coverage where it fell beyond its interval, else HR@50; None where the lists did not get narrower."""
    if not breadth.get("narrower"):
        return None
    coverage, hits = (_change(breadth["changes"].get(name)) for name in ("coverage", "hr@50"))
    return f"coverage {coverage}" if coverage is not None and coverage.high < 0 else f"HR@50 {hits}"


def _admitted_change(cells: Rows) -> float | None:
    """best - control of the cells, each weighted by its examples that the gate would admit."""
    known = [cell for cell in cells if "admitted" in cell]
    weights = [cell["admitted"] * examples_of(cell) for cell in known]
    if sum(weights) == 0:
        return None
    changes = [cell["best_hr@10"] - cell["control_hr@10"] for cell in known]
    return float(np.average(changes, weights=weights))


def _change(values: Sequence[float] | None) -> Change | None:
    return None if values is None else Change(value=values[0], low=values[1], high=values[2])


def _metric(metrics: Mapping[str, Any], row: str, name: str) -> float | None:
    value: float | None = metrics.get(row, {}).get(name)
    return value


def _first(steps: Rows) -> Rows:
    return steps[: max(1, len(steps) // LATE)]


def _last(steps: Rows) -> Rows:
    return steps[-max(1, len(steps) // LATE) :]


def _mean(rows: Rows, name: str) -> float | None:
    """The mean of what is known; a mean over nothing stands in a metrics file as null or NaN."""
    values = [row[name] for row in rows if row.get(name) is not None and not np.isnan(row[name])]
    return float(np.mean(values)) if values else None
