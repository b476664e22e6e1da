"""Prints the results of several runs, pooled, as a Markdown table: `python docs/scripts/results.py
runs/ml100k-seed*`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sluice.learner.ranking_metrics import bootstrap_mean, per_user
from sluice.services.config import load_config
from sluice.services.report.report import ROWS
from sluice.services.run.summary import PAIRS

METRICS = ("hr@1", "hr@10", "hr@50", "ndcg@10")


def table(directories: list[Path]) -> str:
    """Every row's mean over the runs, HR@10 of each run, and the paired differences over all runs together.

    Intervals draw whole users, each with the examples of all runs.
    """
    summaries = [json.loads((directory / "summary.json").read_text()) for directory in directories]
    ranks = [pq.read_table(directory / "ranks.parquet").to_pydict() for directory in directories]
    users = np.concatenate([np.array(run["user"]) for run in ranks])
    width = load_config(directories[0] / "config.yaml").evaluation.beam_width
    values = {
        row: per_user(np.concatenate([np.array(run[row]) for run in ranks]), width)
        for row in ROWS
        if all(row in run for run in ranks)
    }
    metrics = [metric for metric in METRICS if metric in values["start"]]
    header = ["test", *metrics, *(f"hr@10, seed {summary['seed']}" for summary in summaries)]
    lines = [header, ["---"] * len(header)]
    for row, of_row in values.items():
        means = [f"{of_row[metric].mean():.4f}" for metric in metrics]
        lines.append([row, *means, *(f"{summary['metrics'][row]['hr@10']:.4f}" for summary in summaries)])
    for first, second in (pair for pair in PAIRS if set(pair) <= set(values)):
        cells = []
        for metric in metrics:
            difference = values[first][metric] - values[second][metric]
            low, high = bootstrap_mean(difference, users)
            cells.append(f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
        of_runs = [_difference(summary, first, second) for summary in summaries]
        lines.append([f"{first} - {second}", *cells, *of_runs])
    for row in ("start", "control", "best"):
        shares = [f"{summary['metrics'][row]['hallucination']:.3%}" for summary in summaries]
        lines.append([f"hallucination, {row}", *[""] * len(metrics), *shares])
    shares = [f"{summary['gate']['rate']:.1%}" for summary in summaries]
    lines.append(["gate: admitted", *[""] * len(metrics), *shares])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _difference(summary: dict, first: str, second: str) -> str:
    low, high = summary["intervals"]["hr@10"][f"{first}-{second}"]
    difference = summary["metrics"][first]["hr@10"] - summary["metrics"][second]["hr@10"]
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))
