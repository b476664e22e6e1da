"""The place of a prepared data set: whether it is up to date, and how it is replaced all at once or not at all."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalog.dataset import FILES, FORMAT, MANIFEST, read_manifest
from catalog.errors import DataError
from catalog.settings import DataSettings


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A directory beside `output` that takes its place when the block ends well, and vanishes when it does not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    staging, old = (output.with_name(f".{output.name}.{kind}-{tag}") for kind in ("preparing", "replaced"))
    staging.mkdir()
    try:
        yield staging
        if output.exists():
            output.rename(old)
        try:
            staging.rename(output)
        except BaseException:
            if old.exists():
                old.rename(output)
            raise
    finally:
        if staging.exists():
            shutil.rmtree(staging)
    if old.exists():
        shutil.rmtree(old)


def check_replaceable(output: Path) -> None:
    """Raises DataError when `output` holds something that `prepare` did not write."""
    if output.exists() and not output.is_dir():
        raise DataError(f"the output {output} is a file; give a directory")
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise DataError(f"the output {output} holds other files and no {MANIFEST}; give an empty or a new directory")


def is_current(output: Path, settings: DataSettings, fingerprint: list[dict[str, str | int]]) -> bool:
    """Whether `output` holds what would be written: same settings, same source, files as they were written."""
    manifest = read_manifest(output)
    if manifest is None or manifest.get("format") != FORMAT:
        return False
    if manifest.get("settings") != settings.model_dump(mode="json") or manifest.get("source") != fingerprint:
        return False
    files = manifest.get("files", {})
    if not set(FILES) <= set(files):
        return False
    return all((output / name).is_file() and sha256_of(output / name) == digest for name, digest in files.items())


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
