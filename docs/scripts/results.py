"""Prints the results of several runs as a Markdown table: `python docs/scripts/results.py
runs/ml100k-seed*`.
"""

import json
import sys
from pathlib import Path

ROWS = ("popularity", "itemknn", "ranker", "start", "control", "control_last", "best", "last")


def table(directories: list[Path]) -> str:
    """HR@10 / NDCG@10 of every row on the test users, then the paired difference best - control with its
    interval.
    """
    summaries = [json.loads((directory / "summary.json").read_text()) for directory in directories]
    header = ["test HR@10 / NDCG@10", *(f"seed {summary['seed']}" for summary in summaries)]
    lines = [header, ["---"] * len(header)]
    for row in ROWS:
        values = [summary["metrics"][row] for summary in summaries]
        lines.append([row, *(f"{value['hr@10']:.4f} / {value['ndcg@10']:.4f}" for value in values)])
    for metric in ("hr@10", "ndcg@10"):
        cells = []
        for summary in summaries:
            low, high = summary["intervals"][metric]["best-control"]
            difference = summary["metrics"]["best"][metric] - summary["metrics"]["control"][metric]
            cells.append(f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append([f"best - control, {metric}", *cells])
    for row in ("start", "control", "best"):
        shares = [f"{summary['metrics'][row]['hallucination']:.3%}" for summary in summaries]
        lines.append([f"hallucination, {row}", *shares])
    lines.append(["gate: admitted", *(f"{summary['gate']['rate']:.1%}" for summary in summaries)])
    lines.append(["groups/s, learner steps", *(_speed(summary) for summary in summaries)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _speed(summary: dict) -> str:
    return f"{summary['throughput']['groups_per_s']:.0f}, {summary['throughput']['learner_steps']}"


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))
