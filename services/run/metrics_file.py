"""Reading a run's metrics file, also while it is being written: a last line that is torn is left out."""

import json
from pathlib import Path
from typing import Any

from sluice.catalog.files import read_whole_lines


def read_metrics(metrics: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a metrics file."""
    rows = [json.loads(line) for line in read_whole_lines(metrics).lines]
    return [row for row in rows if row["kind"] == kind]


def seconds_of(metrics: Path) -> float | None:
    """How long the training behind a metrics file took, validations included, over all its starts; None when
    there is no line.
    """
    total = last = 0.0
    rows = [json.loads(line) for line in read_whole_lines(metrics).lines]
    for row in rows:
        if row["kind"] == "start":  # the clock of the lines begins again with each process
            total, last = total + last, 0.0
        last = row["time_s"]
    return round(total + last, 1) if rows else None


def last_metrics(metrics: Path, kind: str | None = None) -> dict[str, Any] | None:
    """The last line of one kind, or of any."""
    rows = (json.loads(line) for line in reversed(read_whole_lines(metrics).lines))
    return next((row for row in rows if kind in (None, row["kind"])), None)
