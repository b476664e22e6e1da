"""Draws the README's picture from a run directory: `python docs/scripts/picture.py runs/ml100k-seed0
docs/pictures/ml100k.svg`.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = ("popularity", "itemknn", "ranker", "start", "control", "best", "last")
COLORS = {"start": "#8a8f98", "control": "#d9822b", "best": "#2e8b57", "last": "#3b7dd8"}


def evaluations(path: Path) -> tuple[list[int], list[float]]:
    """Steps and validation HR@10 of a metrics file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "eval"]
    return [row["step"] for row in rows], [row["hr@10"] for row in rows]


def draw(run_directory: Path, picture: Path) -> None:
    """Validation over the optimizer steps, and HR@10 on test with bootstrap intervals."""
    summary = json.loads((run_directory / "summary.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for label, file, color in (
        ("AdaGRPO", "metrics", COLORS["best"]),
        ("NLL alone", "metrics-control", COLORS["control"]),
    ):
        left.plot(
            *evaluations(run_directory / f"{file}.jsonl"), marker="o", markersize=3, color=color, label=label
        )
    left.set(xlabel="optimizer step", ylabel="HR@10", title="validation (the axis does not begin at 0)")
    left.legend(frameon=False)
    for place, row in enumerate(ROWS):
        value, (low, high) = summary["metrics"][row]["hr@10"], summary["intervals"]["hr@10"][row]
        color = COLORS.get(row, "#b9bec6")
        right.barh(place, value, color=color)
        right.errorbar(
            value, place, xerr=[[value - low], [high - value]], color="black", linewidth=0.8, capsize=2
        )
    right.set(yticks=range(len(ROWS)), yticklabels=ROWS, xlabel="HR@10, 95% interval", title="test")
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
