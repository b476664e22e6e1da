"""The log and the catalogue: whether the files are there, their columns, and what their first rows hold.

Reading stops after `budget_s`. Of a log that was read to its end the number of items is known, and whether
too many rows are unusable.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sluice.catalog.data.cleaning import LogCleaner, Rejections
from sluice.catalog.data.items import read_items
from sluice.catalog.data.log_files import table_file
from sluice.catalog.data.settings import DataSettings, Source, TableSource
from sluice.catalog.data.sources import LogSource, estimate_rows, find_unread_histories, open_source
from sluice.catalog.errors import DataError
from sluice.services.preflight.finding import Finding

READ_S = 2.0
_CATALOGUE_ROWS = 200_000  # a larger catalogue is left to `prepare`
_SHOWN = 3
_THERE = "a file that can be read, or a directory of such files"


@dataclass(frozen=True, kw_only=True)
class LogFacts:
    """What is known of a log before it is prepared."""

    findings: tuple[Finding, ...]
    items: int | None = None  # None: not all of it was read
    has_codes: bool = False  # the catalogue brings its own semantic IDs
    size_bytes: int = 0


def read_log(
    settings: DataSettings, budget_s: float = READ_S, clock: Callable[[], float] = time.monotonic
) -> LogFacts:
    """Look at every file of the source, and read as much of the log as `budget_s` allows."""
    findings = list(_missing(settings.source))
    if findings:
        return LogFacts(findings=tuple(findings))
    until_s = clock() + budget_s
    try:
        source = open_source(settings.source)
        findings += _unreadable(source, lambda: clock() > until_s)
    except DataError as error:
        findings.append(Finding.of_error("data.source", error))
    if findings:
        return LogFacts(findings=tuple(findings))
    size_bytes = sum(file.path.stat().st_size for file in source.files)
    try:
        ids, has_codes = _catalogue(source)
        log = _read_rows(source, ids, settings, lambda: clock() > until_s)
    except DataError as error:
        return LogFacts(findings=(Finding.of_error("data.source", error),), size_bytes=size_bytes)
    findings = [*_judge(log, settings, source.estimated_rows()), *_unread(source)]
    return LogFacts(
        findings=tuple(findings),
        items=log.items if ids is None else len(ids),
        has_codes=has_codes,
        size_bytes=size_bytes,
    )


def _missing(source: Source) -> Iterator[Finding]:
    """Every path of a table source that cannot be opened, not the first alone."""
    if not isinstance(source, TableSource):
        return
    nothing_else = dict.fromkeys(("fresh", "valid", "test"), ()) | dict.fromkeys(("catalogue", "users"))
    for name in ("interactions", "fresh", "valid", "test"):
        for path in getattr(source, name):
            alone = source.model_copy(update=nothing_else | {"interactions": (path,)})
            yield from _refused(f"data.source.{name}", partial(open_source, alone), _THERE)
    for name in ("catalogue", "users"):
        if (path := getattr(source, name)) is not None:
            setting = f"data.source.{name}"
            yield from _refused(setting, partial(table_file, Path(path), setting), _THERE)


def _unreadable(source: LogSource, late: Callable[[], bool]) -> Iterator[Finding]:
    """Every file whose first rows cannot be read, in turn until it is late."""
    for file in source.files:
        first = replace(source, files=(file,), catalogue=None, users=None).batches()
        yield from _refused("data.source.columns", partial(next, first, None))
        if late():
            return
    if source.catalogue is not None:
        yield from _refused("data.source.catalogue_columns", lambda: next(source.catalogue_batches(), None))
    if source.users is not None:
        yield from _refused("data.source.user_columns", lambda: next(source.user_batches(), None))


def _refused(field: str, attempt: Callable[[], object], bound: str = "") -> Iterator[Finding]:
    try:
        attempt()
    except DataError as error:
        yield Finding.of_error(field, error, bound=bound, remedy="correct the path" if bound else "")


def _catalogue(source: LogSource) -> tuple[list[str] | None, bool]:
    """The ids of the catalogue, None where there is none or it is large; and whether it has codes."""
    if source.catalogue is None:
        return None, False
    has_codes = "codes" in source.catalogue_columns
    if estimate_rows(source.catalogue) > _CATALOGUE_ROWS:
        return None, has_codes
    items = read_items(source, Rejections("catalogue"))
    return (items.ids if items else None), has_codes


@dataclass(frozen=True, kw_only=True)
class _Log:
    rejections: Rejections
    items: int | None  # different ids in usable rows; None: the log goes on


def _read_rows(
    source: LogSource, ids: list[str] | None, settings: DataSettings, late: Callable[[], bool]
) -> _Log:
    rejections = Rejections("interactions")
    known = None if ids is None else pa.array(ids, pa.string())
    in_catalogue = None if known is None else lambda column: _contains(known, column)
    cleaner = LogCleaner.of(settings, rejections, in_catalogue)
    seen: set[str] = set()
    for batch in source.batches():
        rows = cleaner.clean(batch)
        seen.update(pc.unique(rows.column("item_id")).to_pylist())
        if late():
            return _Log(rejections=rejections, items=None)
    complete = known is None and source.catalogue is None
    return _Log(rejections=rejections, items=len(seen) if complete else None)


def _contains(known: pa.Array, column: pa.Array) -> np.ndarray:
    contained: np.ndarray = pc.is_in(column, value_set=known).to_numpy(zero_copy_only=False)
    return contained


def _unread(source: LogSource) -> Iterator[Finding]:
    for column in find_unread_histories(source):
        yield Finding(
            field="data.source.columns.history",
            value=f"null, and the column {column!r} holds lists of items of this log",
            bound="the column of what the user had before, if there is one",
            remedy=f"set it to {column} if that is it",
            exit_code=0,
        )


def _judge(log: _Log, settings: DataSettings, estimated_rows: int) -> Iterator[Finding]:
    """More unusable rows than the whole log may have, whatever comes after the rows that were read."""
    bad, rows = log.rejections.bad, log.rejections.rows
    if rows == 0:
        yield Finding(
            field="data.source",
            value="the log holds no row",
            bound="at least one interaction",
            remedy="give the files of the log",
        )
    elif bad > settings.max_bad_share * max(rows, estimated_rows):
        shown = ", ".join(
            f"{Path(row.file).name} row {row.row}: {row.column}={row.value!r} {row.reason}"
            for row in log.rejections.first[:_SHOWN]
        )
        yield Finding(
            field="data.source",
            value=f"{bad} of the first {rows} rows cannot be used ({shown})",
            bound=f"data.max_bad_share {settings.max_bad_share:g} of all rows",
            remedy="mend these rows or data.source.columns, or raise data.max_bad_share",
        )
