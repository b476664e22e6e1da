"""Where logs and catalogues come from.

That is MovieLens-100K, out of the installed recbole wheel, or the user's Parquet and CSV files.

A source yields raw columns under the names of the contract, batch by batch and in file order, together with
the 1-based data row of each value. It knows files, columns and types only; `sluice.catalog.data.cleaning`
judges the values.
"""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from sluice.catalog.data.settings import MovieLensSource, Source, TableSource
from sluice.catalog.errors import DataError
from sluice.catalog.files import sha256_of

BATCH_ROWS = 65_536
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
_PARQUET = (".parquet", ".pq")
_SINGLE_VALUED = {
    "user_id",
    "item_id",
    "timestamp",
    "rating",
    "click",
    "dwell_seconds",
    "exposed_by",
    "part",
    "title",
}
_CSV_BYTES_PER_ROW = 24  # a low guess: it only sizes the partition and the progress bar
_BLOCK_BYTES = 1 << 22
_MOVIELENS = "recbole/dataset_example/ml-100k/ml-100k"


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One file of a source."""

    path: Path
    delimiter: str | None  # None: Parquet
    part: str | None = None  # of all its rows; None: the file does not decide it

    def fingerprint(self) -> dict[str, str | int]:
        """What tells whether the file has changed since: path, bytes and sha256."""
        return {"path": str(self.path), "bytes": self.path.stat().st_size, "sha256": sha256_of(self.path)}

    def estimated_rows(self) -> int:
        """Rows, exactly for Parquet and roughly for text."""
        if self.delimiter is None:
            return int(_parquet(self.path).metadata.num_rows)
        return max(1, self.path.stat().st_size // _CSV_BYTES_PER_ROW)


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
    words: frozenset[str] = frozenset()  # attribute names whose text is a list of words
    years: frozenset[str] = frozenset()  # attribute names that hold a year of release

    def fingerprint(self) -> list[dict[str, str | int]]:
        """Of every file, the catalogue last."""
        return [file.fingerprint() for file in (*self.files, *([self.catalogue] if self.catalogue else []))]

    def estimated_rows(self) -> int:
        """Rows of the log."""
        return sum(file.estimated_rows() for file in self.files)

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
    files = [file for path in source.interactions for file in _expand(Path(path))]
    parts = {name: getattr(source, name) for name in ("fresh", "valid", "test") if getattr(source, name)}
    if parts:
        files = [replace(file, part="pretrain") for file in files]
    for name, paths in parts.items():
        expanded = (file for path in paths for file in _expand(Path(path), f"data.source.{name}"))
        files += [replace(file, part=name) for file in expanded]
    catalogue_columns = source.catalogue_columns.model_dump(exclude={"attributes"}, exclude_none=True)
    return LogSource(
        files=tuple(files),
        columns=source.columns.model_dump(exclude_none=True),
        catalogue=table_file(Path(source.catalogue)) if source.catalogue else None,
        catalogue_columns=catalogue_columns,
        attribute_columns={name: name for name in source.catalogue_columns.attributes},
    )


def _expand(path: Path, asker: str = "data.source.interactions") -> list[TableFile]:
    if not path.is_dir():
        return [table_file(path)]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not file.name.startswith((".", "_")) and _kind(file)
    )
    if not files:
        raise DataError(f"{asker}: the directory {path} holds no {_suffixes()} file")
    return [table_file(file) for file in files]


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


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    known = (".csv", ".tsv") if path.name.lower().endswith(".gz") else (".csv", ".tsv", *_PARQUET)
    return next((suffix for suffix in known if name.endswith(suffix)), "")


def _suffixes() -> str:
    return ", ".join((*_PARQUET, ".csv", ".tsv", ".csv.gz", ".tsv.gz"))


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _check_columns(path: Path, columns: dict[str, str], available: list[str], setting: str | None) -> None:
    for name, column in columns.items():
        if column in available:
            continue
        if setting is None:
            raise DataError(f"{path} has no column {column!r}; it has {', '.join(available) or 'none'}")
        listed = f"{setting}.attributes" if name.startswith("attribute:") else f"{setting}.{name}"
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
        if pa.types.is_nested(schema.field(column).type) and name in _SINGLE_VALUED:
            mapped = f" ({setting}.{name})" if setting else ""
            raise DataError(
                f"{path}: column {column!r}{mapped} is {schema.field(column).type}, not single values"
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
        with pc_csv.open_csv(pa.input_stream(str(path), compression="detect"), **options) as reader:
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
        raise DataError(f"{path} cannot be read after data row {row - 1}: {error}") from None
    if taken < len(skipped):
        nothing = {name: pa.array([], pa.string()) for name in columns}
        yield RawBatch(
            file=str(path), columns=nothing, rows=np.empty(0, dtype=np.int64), malformed=skipped[taken:]
        )


def _header(file: TableFile) -> list[str]:
    opened = gzip.open if file.path.name.lower().endswith(".gz") else open
    try:
        with opened(file.path, "rt", encoding="utf-8-sig") as stream:
            line = stream.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} cannot be read as UTF-8 text: {error}") from None
    return next(csv.reader([line], delimiter=file.delimiter or ","), [])
