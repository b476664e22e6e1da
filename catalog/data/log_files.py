"""Which files a log is made of, and in which order they are read.

A directory stands for the files below it whose suffix can be read, those in linked directories too. Names
that begin with `.` or `_` are skipped at any depth, as Spark, Hive and Arrow do. Numbers in names count as
numbers: part-2 comes before part-10.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sluice.catalog.errors import DataError
from sluice.catalog.files import sha256_of

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One file of a source."""

    path: Path
    delimiter: str | None  # None: Parquet

    @property
    def compression(self) -> str | None:
        """Of a text file, as Arrow names it."""
        return "gzip" if self.path.name.lower().endswith(".gz") else None

    def fingerprint(self) -> dict[str, str | int]:
        """What tells whether the file has changed since: path, bytes and sha256."""
        return {"path": str(self.path), "bytes": self.path.stat().st_size, "sha256": sha256_of(self.path)}


@dataclass(frozen=True, kw_only=True)
class LogFiles:
    """The files of a log in the order of reading."""

    files: tuple[TableFile, ...]
    left_out: tuple[str, ...]  # files of the directories that are not read: hidden data, or another kind


def find_log_files(paths: tuple[str, ...], *, order_matters: bool) -> LogFiles:
    """The files that `data.source.interactions` stands for.

    With `order_matters` (the log has no timestamps) the names in a directory must give the order by their
    numbers.

    Raises:
        DataError: a file is missing, stands there twice or has no suffix that we read; a directory holds none
            or cannot be read; or the order cannot be told.
    """
    files: list[TableFile] = []
    left_out: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(table_file(path))
            continue
        inside, others = _expand(path)
        if order_matters:
            _check_order(path, inside)
        files += [table_file(file) for file in inside]
        left_out += map(str, others)
    _check_once(files)
    return LogFiles(files=tuple(files), left_out=tuple(left_out))


def table_file(path: Path, asker: str = "data.source") -> TableFile:
    """The file at `path`, its kind told by its suffix; `asker` names in errors who asked for it.

    Raises:
        DataError: it is not there, or its suffix is none that we read.
    """
    if not path.is_file():
        raise DataError(f"{asker}: there is no file {path}")
    kind = _kind(path)
    if not kind:
        raise DataError(f"{asker}: {path} has none of the suffixes that can be read ({_suffixes()})")
    return TableFile(path=path, delimiter=_DELIMITERS.get(kind))


def _expand(directory: Path) -> tuple[list[Path], list[Path]]:
    """The files to read, in natural order, and those left out."""
    read, left_out = [], []
    for path in _files_below(directory, frozenset()):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(directory).parts)
        if hidden != (not _kind(path)):
            left_out.append(path)  # what others hide, such as _SUCCESS, is no data: that is not worth a word
        elif hidden:
            continue
        elif not path.is_file():
            raise DataError(f"data.source.interactions: {path} is a link to a file that is not there")
        else:
            read.append(path)
    if not read:
        raise DataError(f"data.source.interactions: the directory {directory} holds no {_suffixes()} file")
    ordered = sorted(read, key=lambda path: (_natural(path.relative_to(directory)), str(path)))
    for earlier, later in pairwise(ordered):
        if _natural(earlier.relative_to(directory)) == _natural(later.relative_to(directory)):
            raise DataError(
                f"data.source.interactions: {earlier} and {later} have the same number, so their order "
                "cannot be told: rename one, or list the files in order"
            )
    return ordered, sorted(left_out)


def _files_below(directory: Path, above: frozenset[Path]) -> Iterator[Path]:
    """All files, those of linked directories too; a link to a directory above is not followed."""
    real = directory.resolve()
    if real in above:
        return
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise DataError(f"data.source.interactions: {directory} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir():
            yield from _files_below(entry, above | {real})
        else:
            yield entry


def _natural(path: Path) -> list[list[str | int]]:
    """Of every part of a path: text, number, text, number, ..."""
    return [
        [int(piece) if place % 2 else piece for place, piece in enumerate(re.split("([0-9]+)", part))]
        for part in path.parts
    ]


def _check_order(directory: Path, files: list[Path]) -> None:
    for earlier, later in pairwise(files):
        pieces = [
            [piece for part in _natural(path.relative_to(directory)) for piece in part]
            for path in (earlier, later)
        ]
        first, second = next((a, b) for a, b in zip(*pieces, strict=False) if a != b)
        if not isinstance(first, int) or not isinstance(second, int):
            raise DataError(
                "data.source.interactions: without timestamps the rows must stand in order of time, and "
                f"nothing tells whether {earlier} or {later} comes first: list the files in order, number "
                "them, or name data.source.columns.timestamp"
            )


def _check_once(files: list[TableFile]) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        other = seen.setdefault(Path(os.path.realpath(file.path)), file.path)
        if other is not file.path:
            raise DataError(
                f"data.source.interactions: {file.path} is the same file as {other}, and its rows would "
                "count twice: name it once"
            )


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    known = (".csv", ".tsv") if path.name.lower().endswith(".gz") else (".csv", ".tsv", *_PARQUET)
    return next((suffix for suffix in known if name.endswith(suffix)), "")


def _suffixes() -> str:
    return ", ".join((*_PARQUET, ".csv", ".tsv", ".csv.gz", ".tsv.gz"))
