"""Artefacts that are built once: a directory, the inputs it was built from, and nothing half-written.

A stage is skipped when its directory was built from the same inputs, by value. It is built beside its place and moved
there when it is whole, so an interrupted build leaves nothing behind that looks finished.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STAMP = "inputs.json"


def build_once(directory: Path, inputs: dict[str, Any], build: Callable[[Path], None]) -> bool:
    """Build `directory` from `inputs` (JSON-able) unless it is there already; returns whether it was built now."""
    if stage_inputs(directory) == _canonical(inputs):
        return False
    fresh = directory.with_name(directory.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    build(fresh)
    (fresh / _STAMP).write_text(json.dumps(inputs, indent=1, sort_keys=True))
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    return True


def stage_inputs(directory: Path) -> str | None:
    """The inputs a finished stage was built from, in canonical form; None when there is none."""
    try:
        return _canonical(json.loads((directory / _STAMP).read_text()))
    except (OSError, ValueError):
        return None


def digest(path: Path) -> str:
    """sha256 of a file, to name an input by its content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(inputs: dict[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True)
