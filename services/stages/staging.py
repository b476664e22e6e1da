"""Directories that are built once: from which inputs, and replaced all at once or not at all.

A stage is skipped when its directory was built from the same inputs, by value, and its files are as they were
written. It is built aside (`catalog/files.py`), so an interrupted build leaves nothing behind that looks
finished.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sluice.catalog.data.dataset import FILES, FORMAT, MANIFEST, read_manifest
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.errors import DataError
from sluice.catalog.files import (
    digest_files,
    directory_aside,
    find_damage,
    remove_leftovers,
    settle_directory,
    write_atomically,
)

_STAMP = "inputs.json"
_SUMS = "sums.json"


def build_once(
    directory: Path, inputs: dict[str, Any], build: Callable[[Path], None], *, keep: bool = False
) -> bool:
    """Build `directory` from `inputs` (JSON-able) unless it is there already; returns whether it was built
    now.

    With `keep`, one that is there stays as it is, whatever it was built from: checkpoints hold on to it.
    """
    settle_directory(directory)
    stamp = stage_inputs(directory)
    if stamp is not None and (keep or (stamp == _canonical(inputs) and find_stage_damage(directory) is None)):
        return False
    remove_leftovers(directory)
    with directory_aside(directory) as fresh:
        build(fresh)
        write_atomically(fresh / _SUMS, json.dumps(digest_files(fresh), indent=1))
        write_atomically(fresh / _STAMP, json.dumps(inputs, indent=1, sort_keys=True))
    return True


def stage_inputs(directory: Path) -> str | None:
    """The inputs a finished stage was built from, in canonical form; None when there is none."""
    try:
        return _canonical(json.loads((directory / _STAMP).read_text()))
    except (OSError, ValueError):
        return None


def find_stage_damage(directory: Path) -> str | None:
    """Which file of a finished stage is not as it was written, and how; None when all are.

    A stage of an earlier release has no sums, and counts as whole.
    """
    sums = directory / _SUMS
    if not sums.exists():
        return None
    try:
        return find_damage(directory, dict(json.loads(sums.read_text())))
    except (OSError, ValueError, TypeError) as error:
        return f"{_SUMS} cannot be read ({error})"


def find_data_damage(output: Path, manifest: Mapping[str, Any]) -> str | None:
    """Which file of a prepared directory is not as its manifest has it, and how; None when all are."""
    return find_damage(output, manifest.get("files", {}))


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
    return set(FILES) <= set(manifest.get("files", {})) and find_data_damage(output, manifest) is None


def _same_settings(recorded: Any, settings: DataSettings) -> bool:
    """Whether a manifest records these; a setting that it does not know yet had its default."""
    try:
        return DataSettings.model_validate(recorded) == settings
    except ValidationError:
        return False
