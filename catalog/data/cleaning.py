"""Which rows of a log can be used.

Every value is judged once, and every row refused is reported with file, row and reason.

Ids are compared as text. A whole or decimal number is a timestamp as it stands (decimals are cut off); dates
and date-times become microseconds since 1970 (UTC when they name no zone). One log must not mix the two.
"""

import datetime
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sluice.catalog.data.sources import RawBatch
from sluice.catalog.errors import DataError

SHOWN = 10  # bad rows that an error message lists

CLEAN_LOG = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("rating", pa.float32()),
        pa.field("click", pa.bool_()),
        pa.field("dwell_seconds", pa.float32()),
        pa.field("exposed_by", pa.string()),
        pa.field("part", pa.int8()),
    ]
)

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*$"
_WHOLE = r"^\s*[+-]?\d{1,18}\s*$"
_TRUTH = {"true": True, "t": True, "yes": True, "1": True, "1.0": True}
_FALSEHOOD = {"false": False, "f": False, "no": False, "0": False, "0.0": False}
_SIGNED = r"[+-]?\d+"
_INT64_LIMIT = 2.0**63
_FLOAT_LIMIT = 2.0**53  # below it a float64 holds every whole number


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """One row that was refused."""

    file: str
    row: int  # 1-based data row
    column: str  # the contract's name of it
    value: str
    reason: str


class Rejections:
    """All rows refused of one table: counted by reason, the first few kept, every one written to `sink`."""

    def __init__(self, table: str, sink: TextIO | None = None) -> None:
        self.table = table
        self.rows = 0  # rows judged, good and bad
        self.by_reason: Counter[str] = Counter()
        self.first: list[BadRow] = []
        self._sink = sink

    @property
    def bad(self) -> int:
        """Rows refused."""
        return self.by_reason.total()

    def add(self, bad: BadRow) -> None:
        """Count a refused row; keep it if it is among the first, and write it to the sink."""
        self.by_reason[f"{bad.column} {bad.reason}"] += 1
        if len(self.first) < SHOWN:
            self.first.append(bad)
        if self._sink:
            self._sink.write(json.dumps({"table": self.table, **asdict(bad)}, ensure_ascii=False) + "\n")

    def check(self, max_bad_share: float) -> None:
        """Raises DataError when more than `max_bad_share` of the rows were refused."""
        if self.bad <= max_bad_share * self.rows:
            return
        lines = [f"  {b.file}, row {b.row}, {b.column}={b.value!r}: {b.reason}" for b in self.first]
        more = [f"  and {self.bad - len(self.first)} more"] if self.bad > len(self.first) else []
        share = self.bad / self.rows
        raise DataError(
            f"{self.bad} of {self.rows} rows of the {self.table} ({share:.4%}) cannot be used, more than "
            f"data.max_bad_share {max_bad_share} allows:\n"
            + "\n".join(lines + more)
            + "\nFix these rows, or leave them out by raising data.max_bad_share to "
            f"{np.ceil(share * 10_000) / 10_000:g} or more"
        )

    def summary(self) -> dict[str, object]:
        """For the manifest."""
        return {"rows": self.rows, "bad": self.bad, "by_reason": dict(sorted(self.by_reason.items()))}


class LogCleaner:
    """Turns raw batches into rows of `CLEAN_LOG`."""

    def __init__(
        self,
        rejections: Rejections,
        known_items: Callable[[pa.Array], np.ndarray] | None,
        parts: dict[str, int] | None = None,
    ) -> None:
        """`known_items` says which item ids [n] are in the catalogue, bool [n]; None takes every id.

        `parts` are the values that name the part of a row (`splits.part_values`); None: no row names one.
        """
        self._parts = parts
        self._rejections = rejections
        self._known_items = known_items
        self._time_kind: str | None = None  # "number" or "date", fixed by the first usable timestamp
        self._row = 0  # rows so far, the time of a log without timestamps

    def clean(self, batch: RawBatch) -> pa.RecordBatch:
        """The usable rows of a batch, in their order."""
        n = len(batch.rows)
        judge = _Judge(batch, self._rejections)
        users = judge.ids("user_id")
        items = judge.ids("item_id")
        if self._known_items is not None:
            judge.refuse("item_id", ~self._known_items(items), "is not in the catalogue")
        timestamps = self._timestamps(judge, n)
        ratings = judge.numbers("rating")
        click = judge.booleans("click")
        dwell = judge.numbers("dwell_seconds")
        judge.refuse("dwell_seconds", _as_numpy(pc.less(dwell, 0).fill_null(False)), "is negative")
        exposed = (
            as_text(batch.columns["exposed_by"])
            if "exposed_by" in batch.columns
            else pa.nulls(n, pa.string())
        )
        part = pa.nulls(n, pa.int8()) if self._parts is None else judge.parts(self._parts)
        keep = pa.array(judge.close())
        columns = [users, items, pa.array(timestamps), ratings, click, dwell, exposed, part]
        return pa.record_batch([column.filter(keep) for column in columns], schema=CLEAN_LOG)

    def _timestamps(self, judge: "_Judge", n: int) -> np.ndarray:
        first, self._row = self._row, self._row + n
        if "timestamp" not in judge.batch.columns:
            return np.arange(first, first + n, dtype=np.int64)
        values, kinds = parse_times(judge.batch.columns["timestamp"])
        judge.refuse("timestamp", kinds == "null", "is empty")
        judge.refuse("timestamp", kinds == "bad", "is no time")
        judge.refuse("timestamp", values < 0, "is negative")
        usable = np.flatnonzero(judge.good)
        if self._time_kind is None and len(usable):
            self._time_kind = str(kinds[usable[0]])
        if self._time_kind:
            judge.refuse(
                "timestamp", kinds != self._time_kind, f"is no {self._time_kind} as the rows before it are"
            )
        return values


class _Judge:
    """The verdict on one batch: the first reason against a row is the one reported."""

    def __init__(self, batch: RawBatch, rejections: Rejections) -> None:
        self.batch = batch
        self.good = np.ones(len(batch.rows), dtype=bool)
        self._refused: list[BadRow] = [
            BadRow(file=batch.file, row=row, column="row", value=text, reason="has a wrong number of fields")
            for row, text in batch.malformed
        ]
        self._rejections = rejections

    def refuse(self, column: str, bad: np.ndarray, reason: str) -> None:
        for index in np.flatnonzero(bad & self.good):
            value = str(self.batch.columns[column][index].as_py())
            row = int(self.batch.rows[index])
            self._refused.append(
                BadRow(file=self.batch.file, row=row, column=column, value=value, reason=reason)
            )
        self.good &= ~bad

    def ids(self, column: str) -> pa.Array:
        text = as_text(self.batch.columns[column])
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0).fill_null(True)
        self.refuse(column, _as_numpy(empty), "is empty")
        return text.fill_null("")

    def numbers(self, column: str) -> pa.Array:
        """Missing stays missing (null)."""
        if column not in self.batch.columns:
            return pa.nulls(len(self.good), pa.float32())
        raw = self.batch.columns[column]
        values = parse_numbers(raw)
        unusable = ~np.isfinite(values) & ~is_missing(raw)
        self.refuse(column, unusable, "is no number")
        return pa.array(values.astype(np.float32), mask=~np.isfinite(values))

    def booleans(self, column: str) -> pa.Array:
        if column not in self.batch.columns:
            return pa.nulls(len(self.good), pa.bool_())
        encoded = pc.utf8_lower(
            pc.utf8_trim_whitespace(as_text(self.batch.columns[column]))
        ).dictionary_encode()
        truth = [(_TRUTH | _FALSEHOOD).get(text) for text in encoded.dictionary.to_pylist()]
        values = pa.array(truth, pa.bool_()).take(encoded.indices)
        unusable = _as_numpy(values.is_null()) & ~is_missing(self.batch.columns[column])
        self.refuse(column, unusable, "is neither true nor false")
        return values

    def parts(self, values: dict[str, int]) -> pa.Array:
        """int8 [n]; `values` are those that name a part, with its number."""
        encoded = pc.utf8_trim_whitespace(as_text(self.batch.columns["part"])).dictionary_encode()
        known = pa.array([values.get(text) for text in encoded.dictionary.to_pylist()], pa.int8())
        numbers = known.take(encoded.indices)
        self.refuse(
            "part", _as_numpy(numbers.is_null()), f"names no part of data.split ({', '.join(values)})"
        )
        return numbers

    def close(self) -> np.ndarray:
        """Report what was refused, in the order of the rows; returns which rows are good."""
        self._rejections.rows += len(self.batch.rows) + len(self.batch.malformed)
        for bad in sorted(self._refused, key=lambda bad: bad.row):
            self._rejections.add(bad)
        return self.good


def as_text(values: pa.Array) -> pa.Array:
    """Any scalar column as text.

    Whole floats lose their `.0`, so that an id reads the same from every file type.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.string())


def is_missing(values: pa.Array) -> np.ndarray:
    """bool [n]: null, NaN, or text of nothing but spaces."""
    if pa.types.is_floating(values.type):
        return _as_numpy(values.is_null(nan_is_null=True))
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(as_text(values))), 0)
    return _as_numpy(blank.fill_null(True))


def parse_numbers(values: pa.Array) -> np.ndarray:
    """float64 [n]; NaN where there is no number. `nan` and `inf` as text are no numbers."""
    if (
        pa.types.is_integer(values.type)
        or pa.types.is_floating(values.type)
        or pa.types.is_decimal(values.type)
    ):
        return _as_numpy(values.cast(pa.float64(), safe=False).fill_null(np.nan))
    text = as_text(values)
    numeric = pc.match_substring_regex(text, _NUMBER)
    picked = pc.if_else(numeric.fill_null(False), pc.utf8_trim_whitespace(text), None)
    return _as_numpy(picked.cast(pa.float64()).fill_null(np.nan))


def parse_times(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Timestamps int64 [n] and what each is: "number", "date", "null" or "bad" (then its timestamp is 0)."""
    kinds = np.where(is_missing(values), "null", "bad").astype("<U6")
    result = np.zeros(len(values), dtype=np.int64)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        present = kinds != "null"
        micros = values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False).cast(
            pa.int64()
        )
        result[present] = _as_numpy(micros.fill_null(0))[present]
        kinds[present] = "date"
        return result, kinds
    if pa.types.is_integer(values.type):
        present = kinds != "null"
        # An unsigned value beyond int64 wraps around to a negative one, which is refused as such.
        result[present] = _as_numpy(values.cast(pa.int64(), safe=False).fill_null(0))[present]
        kinds[present] = "number"
        return result, kinds
    text = as_text(values)
    whole = pc.match_substring_regex(text, _WHOLE).fill_null(False)
    exact = pc.if_else(whole, pc.utf8_ltrim(pc.utf8_trim_whitespace(text), "+"), None).cast(pa.int64())
    is_whole = _as_numpy(whole)
    result[is_whole] = _as_numpy(exact.fill_null(0))[is_whole]
    numbers = parse_numbers(values)
    decimal = ~is_whole & (np.abs(np.nan_to_num(numbers, nan=np.inf)) < _INT64_LIMIT)
    result[decimal] = np.floor(numbers[decimal]).astype(np.int64)
    kinds[is_whole | decimal] = "number"
    for index in np.flatnonzero(decimal & (np.abs(np.nan_to_num(numbers)) > _FLOAT_LIMIT)):
        digits = text[index].as_py().strip()
        if re.fullmatch(
            _SIGNED, digits
        ):  # such as nanoseconds: too long for the fast path, too precise for a float
            result[index] = int(digits)
    for index in np.flatnonzero(kinds == "bad"):
        micros = _micros(text[index].as_py())
        if micros is not None:
            result[index], kinds[index] = micros, "date"
    return result, kinds


def _as_numpy(values: pa.Array) -> np.ndarray:
    """A copy where Arrow's memory is laid out differently (bits, nulls)."""
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _micros(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date or date-time, None where the text is neither."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
