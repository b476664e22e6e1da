"""Reading a run's metrics file, also while it is being written."""

import json
from pathlib import Path
from typing import Any


def read_metrics(metrics: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a metrics file."""
    rows = [json.loads(line) for line in _whole_lines(metrics)]
    return [row for row in rows if row["kind"] == kind]


def last_metrics(metrics: Path, kind: str) -> dict[str, Any] | None:
    """The last line of one kind."""
    rows = (json.loads(line) for line in reversed(_whole_lines(metrics)))
    return next((row for row in rows if row["kind"] == kind), None)


def _whole_lines(metrics: Path) -> list[str]:
    """A line that is still being written is left out."""
    return metrics.read_text().split("\n")[:-1] if metrics.exists() else []
