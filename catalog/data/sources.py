"""Where logs and catalogues come from.

That is MovieLens-100K, out of the installed recbole wheel, or the user's Parquet and CSV files.

A source yields raw columns under the names of the contract, batch by batch and in file order, together with
the 1-based data row of each value. It knows files, columns and types only; `sluice.catalog.data.cleaning`
judges the values.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from sluice.catalog.data.log_files import TableFile, check_once, find_log_files, table_file
from sluice.catalog.data.settings import MovieLensSource, Source, TableSource
from sluice.catalog.errors import DataError
from sluice.catalog.values import FAMILIES, as_text, family_of, text_lists

BATCH_ROWS = 65_536
# What a column of a contract may be (`values.FAMILIES`), and how to say so.
_KINDS = {
    **dict.fromkeys(("user_id", "item_id"), "id"),
    **dict.fromkeys(("rating", "click", "dwell_seconds", "propensity", "slate_position"), "number"),
    **dict.fromkeys(("exposed_by", "part", "title"), "label"),
    **dict.fromkeys(("history", "embedding", "codes"), "list"),
    "timestamp": "time",
}
_WANTED = {
    "id": "not single values that can be ids: text or whole numbers",
    "time": "not single values that can be times: whole numbers, dates or text",
    "number": "not single values that can be numbers",
    "label": "not single values that can be text",
    "list": "no lists, and no text that could hold them",
    "attribute": "no values or lists that can be attributes",
}
_CSV_BYTES_PER_ROW = 24  # a low guess: it only sizes the partition and the progress bar
_AS_UTF8 = "save the file as UTF-8"
_BLOCK_BYTES = 1 << 22
_LOOKED_AT = 2000  # rows in which lists of items are looked for
_KNOWN_SHARE = 0.1  # of the values of lists of items that are items of the first rows too
_MOVIELENS = "recbole/dataset_example/ml-100k/ml-100k"


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Some rows of one file, unjudged.

    `malformed` are rows of a text file with too many or too few fields.
    """

    file: str
    columns: dict[str, pa.Array]  # contract name -> values, all of one length n
    rows: np.ndarray  # int64 [n], 1-based data row in the file
    malformed: list[tuple[int, str]] = field(default_factory=list)  # (data row, its text)


@dataclass(frozen=True, kw_only=True)
class LogSource:
    """The files of a log and of its catalogue, with the mapping from contract names to columns."""

    files: tuple[TableFile, ...]
    columns: dict[str, str]  # contract name -> column of the log
    catalogue: TableFile | None
    catalogue_columns: dict[str, str]  # "item_id", "title", "embedding", "codes" -> column of the catalogue
    attribute_columns: dict[str, str]  # attribute name -> column of the catalogue
    users: TableFile | None = None
    user_columns: dict[str, str] = field(default_factory=dict)  # "user_id", attributes -> column of `users`
    words: frozenset[str] = frozenset()  # attribute names whose text is a list of words
    years: frozenset[str] = frozenset()  # attribute names that hold a year of release
    left_out: tuple[str, ...] = ()  # files of the log's directories that are not read

    def fingerprint(self) -> list[dict[str, str | int]]:
        """Of every file, those of catalogue and users last."""
        others = [file for file in (self.catalogue, self.users) if file]
        return [file.fingerprint() for file in (*self.files, *others)]

    def estimated_rows(self) -> int:
        """Rows of the log."""
        return sum(estimate_rows(file) for file in self.files)

    def batches(self) -> Iterator[RawBatch]:
        """The log in file order."""
        for file in self.files:
            for batch in read_batches(file, self.columns, "data.source.columns"):
                if file.part is not None:
                    batch.columns["part"] = pa.repeat(file.part, len(batch.rows))
                yield batch

    def catalogue_batches(self) -> Iterator[RawBatch]:
        """The catalogue in file order; nothing when there is none. Attributes come as `attribute:<name>`."""
        if self.catalogue:
            named = {f"attribute:{name}": column for name, column in self.attribute_columns.items()}
            yield from read_batches(
                self.catalogue, self.catalogue_columns | named, "data.source.catalogue_columns"
            )

    def user_batches(self) -> Iterator[RawBatch]:
        """The table of users in file order; nothing when there is none. Attributes as in a catalogue."""
        if self.users:
            yield from read_batches(self.users, self.user_columns, "data.source.user_columns")


def open_source(source: Source) -> LogSource:
    """Find the files of a source.

    Raises:
        DataError: a file or the recbole wheel is missing, or a file's suffix is none that we read.
    """
    return _movielens() if isinstance(source, MovieLensSource) else _tables(source)


def read_batches(file: TableFile, columns: dict[str, str], setting: str | None) -> Iterator[RawBatch]:
    """Read the mapped columns of one file; the values of a text file stay text.

    `setting` is the one that maps them, for errors; None: their names are not the user's to choose.

    Raises:
        DataError: a mapped column is not there, or the file cannot be read.
    """
    if file.delimiter is None:
        yield from _read_parquet(file.path, columns, setting)
    else:
        yield from _read_text(file, columns, setting)


def _movielens() -> LogSource:
    try:
        wheel = metadata.distribution("recbole")
    except metadata.PackageNotFoundError:
        raise DataError(
            "data.source movielens-100k reads the files inside the recbole wheel, which is not installed: "
            "run `pip install --no-deps recbole==1.2.1`"
        ) from None
    # The files are located and read as package data: importing recbole needs packages that nothing here uses.
    paths = {suffix: Path(str(wheel.locate_file(_MOVIELENS + suffix))) for suffix in (".inter", ".item")}
    for path in paths.values():
        if not path.is_file():
            raise DataError(
                f"recbole {wheel.version} does not ship {path.name}: install recbole==1.2.1, which does"
            )
    log, catalogue = (TableFile(path=path, delimiter="\t") for path in paths.values())
    return LogSource(
        files=(log,),
        columns={
            "user_id": "user_id:token",
            "item_id": "item_id:token",
            "timestamp": "timestamp:float",
            "rating": "rating:float",
        },
        catalogue=catalogue,
        catalogue_columns={"item_id": "item_id:token", "title": "movie_title:token_seq"},
        attribute_columns={"genre": "class:token_seq", "year": "release_year:token"},
        words=frozenset({"genre"}),
        years=frozenset({"year"}),
    )


def _tables(source: TableSource) -> LogSource:
    order_matters = source.columns.timestamp is None
    log = find_log_files(source.interactions, order_matters=order_matters)
    files, left_out = list(log.files), list(log.left_out)
    later = {name: getattr(source, name) for name in ("fresh", "valid", "test") if getattr(source, name)}
    if later:
        files = [replace(file, part="pretrain") for file in files]
    for name, paths in later.items():
        inside = find_log_files(paths, order_matters=order_matters, asker=f"data.source.{name}")
        files += [replace(file, part=name) for file in inside.files]
        left_out += inside.left_out
    check_once(files)
    catalogue_columns = source.catalogue_columns.model_dump(exclude={"attributes"}, exclude_none=True)
    return LogSource(
        files=tuple(files),
        left_out=tuple(left_out),
        columns=source.columns.model_dump(exclude_none=True),
        catalogue=table_file(Path(source.catalogue)) if source.catalogue else None,
        catalogue_columns=catalogue_columns,
        attribute_columns={name: name for name in source.catalogue_columns.attributes},
        users=table_file(Path(source.users), "data.source.users") if source.users else None,
        user_columns={
            "user_id": source.user_columns.id,
            **{f"attribute:{name}": name for name in source.user_columns.attributes},
        },
    )


def find_unread_histories(source: LogSource) -> tuple[str, ...]:
    """Columns of the log that hold lists of its items and are mapped to nothing, perhaps histories.

    They are told from the first rows of the first file.
    """
    file, mapped = source.files[0], set(source.columns.values())
    names = [name for name in _list_columns(file) if name and name not in mapped]
    if "history" in source.columns or not names:
        return ()
    columns = {"item_id": source.columns["item_id"], **{f"attribute:{name}": name for name in names}}
    batch = next(read_batches(file, columns, "data.source.columns"), None)
    if batch is None:
        return ()
    items = pc.unique(pc.utf8_trim_whitespace(as_text(batch.columns["item_id"])))
    return tuple(
        name for name in names if _holds(batch.columns[f"attribute:{name}"].slice(0, _LOOKED_AT), items)
    )


def _holds(values: pa.Array, items: pa.Array) -> bool:
    """Whether a column holds lists of which a good part are these items `[n]`, text."""
    if family_of(values.type) == "text":
        values = values.filter(pc.starts_with(pc.utf8_trim_whitespace(as_text(values)), "["))
    ids = pc.utf8_trim_whitespace(text_lists(values).flatten()).drop_null()
    return len(ids) > 0 and pc.mean(pc.is_in(ids, value_set=items)).as_py() >= _KNOWN_SHARE


def _list_columns(file: TableFile) -> list[str]:
    """The columns that may hold lists, as lists or as text, and whose name stands once."""
    if file.delimiter is not None:
        names = _header(file)
    else:
        schema = _parquet(file.path).schema_arrow
        names = [field.name for field in schema if family_of(field.type) in ("list", "text")]
    return [name for name in names if names.count(name) == 1]


def estimate_rows(file: TableFile) -> int:
    """Exactly for Parquet and roughly for text."""
    if file.delimiter is None:
        return int(_parquet(file.path).metadata.num_rows)
    return max(1, file.path.stat().st_size // _CSV_BYTES_PER_ROW)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _setting_of(name: str, setting: str) -> str:
    if name.startswith("attribute:"):
        return f"{setting}.attributes"
    return f"{setting}.id" if setting.endswith(".user_columns") else f"{setting}.{name}"


def _check_columns(path: Path, columns: dict[str, str], available: list[str], setting: str | None) -> None:
    for name, column in columns.items():
        if available.count(column) > 1:
            raise DataError(f"{path} has {available.count(column)} columns {column!r}: rename all but one")
        if column in available:
            continue
        if setting is None:
            raise DataError(f"{path} has no column {column!r}; it has {', '.join(available) or 'none'}")
        listed = _setting_of(name, setting)
        remedy = " or, when the rows already stand in order of time, to null" if name == "timestamp" else ""
        raise DataError(
            f"{path} has no column {column!r} ({listed}); it has "
            f"{', '.join(map(repr, available)) or 'none'}. Set {listed} to one of them{remedy}"
        )


def _read_parquet(path: Path, columns: dict[str, str], setting: str | None) -> Iterator[RawBatch]:
    file = _parquet(path)
    schema = file.schema_arrow
    _check_columns(path, columns, schema.names, setting)
    for name, column in columns.items():
        kind = _KINDS.get(name, "attribute")
        if family_of(schema.field(column).type) not in FAMILIES[kind]:
            mapped = f" ({_setting_of(name, setting)})" if setting else ""
            is_list = kind == "id" and family_of(schema.field(column).type) == "list"
            remedy = "; a list of the items before belongs in data.source.columns.history" * is_list
            raise DataError(
                f"{path}: column {column!r}{mapped} is {schema.field(column).type}, {_WANTED[kind]}{remedy}"
            )
    row = 1
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=sorted(set(columns.values())), use_threads=False):
            rows = np.arange(row, row + batch.num_rows, dtype=np.int64)
            yield RawBatch(
                file=str(path), columns={n: batch.column(c) for n, c in columns.items()}, rows=rows
            )
            row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged after data row {row - 1}: {error}") from None


def _read_text(file: TableFile, columns: dict[str, str], setting: str | None) -> Iterator[RawBatch]:
    path = file.path
    _check_columns(path, columns, _header(file), setting)
    # rows of a wrong number of fields, in order; the reader may run ahead of us
    skipped: list[tuple[int, str]] = []

    def skip(bad: pc_csv.InvalidRow) -> str:
        # Arrow counts the header as row 1 and empty lines not at all.
        skipped.append((bad.number - 1, bad.text))
        return "skip"

    names = sorted(set(columns.values()))
    options = {
        "read_options": pc_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        # The .inter and .item files of recbole quote nothing, a quote in them is a character like any other.
        "parse_options": pc_csv.ParseOptions(
            delimiter=file.delimiter,
            quote_char=False if path.suffix in (".inter", ".item") else '"',
            newlines_in_values=True,
            invalid_row_handler=skip,
        ),
        "convert_options": pc_csv.ConvertOptions(
            include_columns=names,
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
        ),
    }
    row, taken = 1, 0
    try:
        with pc_csv.open_csv(pa.input_stream(str(path), compression=file.compression), **options) as reader:
            for batch in reader:
                rows = np.empty(batch.num_rows, dtype=np.int64)
                first, filled = taken, 0
                while filled < batch.num_rows:
                    gap = skipped[taken][0] if taken < len(skipped) else row + batch.num_rows - filled
                    count = min(gap - row, batch.num_rows - filled)
                    rows[filled : filled + count] = np.arange(row, row + count)
                    filled, row = filled + count, row + count
                    if taken < len(skipped) and row == skipped[taken][0]:
                        row, taken = row + 1, taken + 1
                values = {name: batch.column(column) for name, column in columns.items()}
                yield RawBatch(file=str(path), columns=values, rows=rows, malformed=skipped[first:taken])
    except (pa.ArrowInvalid, OSError) as error:
        place = _undecodable_line(file) or str(error)
        raise DataError(f"{path} cannot be read after data row {row - 1}: {place}") from None
    if taken < len(skipped):
        nothing = {name: pa.array([], pa.string()) for name in columns}
        yield RawBatch(
            file=str(path), columns=nothing, rows=np.empty(0, dtype=np.int64), malformed=skipped[taken:]
        )


def _opened(file: TableFile) -> BinaryIO | gzip.GzipFile:
    return gzip.open(file.path) if file.compression else file.path.open("rb")


def _header(file: TableFile) -> list[str]:
    try:
        with _opened(file) as stream:
            line = stream.readline(1 << 20)
        if b"\0" in line:
            raise DataError(f"{file.path} cannot be read as UTF-8 text: it looks like UTF-16; {_AS_UTF8}")
        text = re.split("[\r\n]", line.decode("utf-8-sig"), maxsplit=1)[0]
    except UnicodeDecodeError as error:
        raise DataError(f"{file.path} cannot be read as UTF-8 text: {error}; {_AS_UTF8}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.path} cannot be read as UTF-8 text: {error}") from None
    return next(csv.reader([text], delimiter=file.delimiter or ","), [])


def _undecodable_line(file: TableFile) -> str | None:
    """The first line that is no UTF-8, for an error; None when there is none."""
    try:
        with _opened(file) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    shown = line[max(0, error.start - 20) : error.start + 20]
                    return f"line {number} cannot be read as UTF-8 text, at {shown!r}; {_AS_UTF8}"
    except (OSError, EOFError, zlib.error):
        return None  # the reader has said it already
    return None
