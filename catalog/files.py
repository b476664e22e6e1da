"""Files as every part of Sluice writes, reads and compares them.

Whatever must not be met half written is written aside, beside its place, and renamed. Its bytes are on the
disk before its name is, so neither a process that dies nor a machine that does leaves a part of it.
"""

import glob
import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes, *, overwrite: bool = True) -> None:
    """Write a file: a reader, and whoever comes after a crash, finds the old content or all of the new.

    Text is written as UTF-8. The file gets the permissions of a new file.

    Raises:
        FileExistsError: `overwrite` is False and there is a file already, which is left as it is.
    """
    aside = _place_aside(path)
    try:
        with aside.open("xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        if overwrite:
            os.replace(aside, path)
        else:
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def directory_aside(directory: Path) -> Iterator[Path]:
    """An empty directory beside `directory` that takes its place when the block ends well, and vanishes when
    it does not.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = _place_aside(directory)
    fresh.mkdir()
    try:
        yield fresh
        replace_directory(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def replace_directory(fresh: Path, directory: Path) -> None:
    """Move `fresh`, which is complete and lies beside `directory`, to its place.

    A reader finds the old directory or the new one, never a mixture; for a moment, neither. Of a process that
    dies in that moment `settle_directory` puts the old one back.
    """
    for folder, _, files in os.walk(fresh):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    old = _place_aside(directory, _OLD)
    if directory.exists():
        os.rename(directory, old)
    try:
        os.rename(fresh, directory)
    except BaseException:
        _put_back(old, directory)
        raise
    _sync(directory.parent)
    # On a network file system a file that is being read cannot be removed, which does not make the new
    # directory worse.
    shutil.rmtree(old, ignore_errors=True)


def was_moved_away(directory: Path) -> bool:
    """Whether `settle_directory` has something to put back."""
    return not directory.exists() and bool(_asides(directory, _OLD))


def settle_directory(directory: Path) -> None:
    """Put back what a process that died had moved away from `directory`, with the new one not yet there.

    Only for a directory that one process at a time writes.
    """
    if was_moved_away(directory):
        former = sorted(_asides(directory, _OLD), key=lambda path: path.stat().st_mtime_ns)
        os.rename(former[-1], directory)
        _sync(directory.parent)


def remove_leftovers(directory: Path) -> None:
    """Remove what processes that died had begun to write aside for `directory`, or had moved away from it.

    Only for a directory that one process at a time writes.
    """
    settle_directory(directory)
    for kind in (_NEW, _OLD):
        for path in _asides(directory, kind):
            shutil.rmtree(path, ignore_errors=True)


def digest_files(directory: Path) -> dict[str, str]:
    """sha256 of every file below a directory, by its path there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_of(path) for path in files}


def find_damage(directory: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the first file that is not as its sha256 says; None when all are whole.

    Args:
        directory: of the files.
        digests: sha256 of each file, by its path there.
    """
    for name, digest in digests.items():
        try:
            now = sha256_of(directory / name)
        except OSError as error:
            return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error}"
        if now != digest:
            return f"{name} is not as it was written (sha256 {now[:12]}, and not {digest[:12]})"
    return None


@dataclass(frozen=True, kw_only=True)
class WholeLines:
    """The lines of a file that were written to their end."""

    lines: list[str]  # without their line ends
    size: int  # bytes of the file that they fill, line ends included


def read_whole_lines(path: Path) -> WholeLines:
    """The lines of a UTF-8 file but for a last one without a line end: it is still being written, or its
    writer died. A file that is not there has none.
    """
    content = path.read_bytes() if path.exists() else b""
    size = content.rfind(b"\n") + 1
    return WholeLines(lines=content[:size].decode().split("\n")[:-1], size=size)


def cut_back(path: Path, nbytes: int) -> None:
    """Keep the first `nbytes` of a file of lines, at most what it has in whole lines. It is made if it is not
    there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, min(nbytes, read_whole_lines(path).size))


def sha256_of(content: Path | Iterable[bytes]) -> str:
    """sha256 in hexadecimal of a file's content, or of pieces of bytes one after the other."""
    if isinstance(content, Path):
        with content.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def to_finite(value: Any) -> Any:
    """A value of JSON with null for each number that is not finite: JSON has no word for these.

    >>> to_finite({"a": (1.5, float("nan"))})
    {'a': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {name: to_finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _put_back(old: Path, directory: Path) -> None:
    if old.exists():
        os.rename(old, directory)


_NEW, _OLD = "new", "old"


def _place_aside(path: Path, kind: str = _NEW) -> Path:
    """A name of its own beside `path`, so that two writers do not meet."""
    return path.with_name(f".{path.name}.{kind}-{uuid.uuid4().hex[:8]}")


def _asides(path: Path, kind: str) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.name)}.{kind}-*"))


def _sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
