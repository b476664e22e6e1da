"""Directories that are built once: from which inputs, and replaced all at once or not at all.

A stage is skipped when its directory was built from the same inputs, by value. It is built aside
(`catalog/files.py`), so an interrupted build leaves nothing behind that looks finished.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sluice.catalog.data.dataset import FILES, FORMAT, MANIFEST, read_manifest
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.errors import DataError
from sluice.catalog.files import directory_aside, remove_leftovers, sha256_of, write_atomically

_STAMP = "inputs.json"


def build_once(directory: Path, inputs: dict[str, Any], build: Callable[[Path], None]) -> bool:
    """Build `directory` from `inputs` (JSON-able) unless it is there already; returns whether it was built
    now.
    """
    if stage_inputs(directory) == _canonical(inputs):
        return False
    remove_leftovers(directory)
    with directory_aside(directory) as fresh:
        build(fresh)
        write_atomically(fresh / _STAMP, json.dumps(inputs, indent=1, sort_keys=True))
    return True


def stage_inputs(directory: Path) -> str | None:
    """The inputs a finished stage was built from, in canonical form; None when there is none."""
    try:
        return _canonical(json.loads((directory / _STAMP).read_text()))
    except (OSError, ValueError):
        return None


def _canonical(inputs: dict[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True)


def check_replaceable(output: Path) -> None:
    """Raises DataError when `output` holds something that `prepare` did not write."""
    if output.exists() and not output.is_dir():
        raise DataError(f"the output {output} is a file; give a directory")
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise DataError(
            f"the output {output} holds other files and no {MANIFEST}; give an empty or a new directory"
        )


def is_current(output: Path, settings: DataSettings, fingerprint: list[dict[str, str | int]]) -> bool:
    """Whether `output` holds what would be written: same settings, same source, files as they were
    written.
    """
    manifest = read_manifest(output)
    if manifest is None or manifest.get("format") != FORMAT:
        return False
    if not _same_settings(manifest.get("settings"), settings) or manifest.get("source") != fingerprint:
        return False
    files = manifest.get("files", {})
    if not set(FILES) <= set(files):
        return False
    return all(
        (output / name).is_file() and sha256_of(output / name) == digest for name, digest in files.items()
    )


def _same_settings(recorded: Any, settings: DataSettings) -> bool:
    """Whether a manifest records these; a setting that it does not know yet had its default."""
    try:
        return DataSettings.model_validate(recorded) == settings
    except ValidationError:
        return False
