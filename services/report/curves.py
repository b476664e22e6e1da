"""The charts of a report that run over optimizer steps, and the retrieval-validity planes."""

from collections.abc import Mapping
from typing import Any

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
)

Rows = list[dict[str, Any]]
_COLORS = {"start": GREY, "control": ORANGE, "best": GREEN, "last": BLUE}


def validation_curves(summary: Mapping[str, Any], evaluations: Rows, control: Rows) -> Rows:
    """Validation over the steps of post-training and control, and where both end on the test examples."""
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
    is_weighted = any("ips_hr@10" in row for row in (*evaluations, *control))
    weighted = _chart("Weighted HR@10 on validation", line_chart(both("ips_hr@10"), "weighted HR@10"))
    return [
        _chart("HR@10 on validation", line_chart(both("hr@10"), "HR@10")),
        *([weighted] if is_weighted else []),
        _chart("HR@1 on validation", line_chart(both("hr@1"), "HR@1")),
        _chart("HR@50 on validation", line_chart(both("hr@50"), "HR@50")),
        _chart(
            "Coverage on validation", line_chart(both("coverage"), "share of the catalogue", percent=True)
        ),
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


def training_curves(steps: Rows) -> Rows:
    """What the post-training itself measured, step by step."""

    def curve(label: str, field: str, color: str) -> Series:
        return Series(label=label, color=color, points=_points(steps, field), smooth=True)

    charts: list[tuple[str, list[Series], str, bool]] = [
        (
            "Gate and its parts",
            [
                curve("gate", "gate_rate", BLUE),
                curve("difficulty", "difficulty", ORANGE),
                curve("discriminability", "discriminability", GREEN),
                curve("trusted user", "trusted", PURPLE),
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
            [
                curve("hit the ground truth", "hit_share", GREEN),
                curve("are no item", "invalid_share", RED),
                curve("repeat another one", "repeated_share", PURPLE),
            ],
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
