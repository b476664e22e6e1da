"""Which rows of a log can be used.

Every value is judged once, and every row refused is reported with file, row and reason.

Ids are compared as text, without the spaces around them (`catalog/values.py`). What times may be is in
`catalog/timestamps.py`; one log must not mix numbers and dates.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, Self, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sluice.catalog.data.schema import EXPOSURE
from sluice.catalog.data.settings import DataSettings, TableSource
from sluice.catalog.data.sources import RawBatch
from sluice.catalog.data.splits import part_values
from sluice.catalog.errors import DataError
from sluice.catalog.timestamps import TimeUnit, UnitCheck, parse_times
from sluice.catalog.values import (
    MISSING_WORDS,
    as_numpy,
    as_text,
    is_inexact,
    is_missing,
    is_undecodable,
    parse_numbers,
    text_lists,
)

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
        *EXPOSURE,
        pa.field("history", pa.large_list(pa.string())),
    ]
)

_TRUTH = {"true": True, "t": True, "yes": True, "1": True, "1.0": True}
_FALSEHOOD = {"false": False, "f": False, "no": False, "0": False, "0.0": False}
_LAST_PLACE = 10_000  # of a slate; more is some other number
_VALUE_LENGTH = 200  # of a value in an error message


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
        self.noted: Counter[str] = Counter()  # what is odd and was used all the same
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
        lines = [f"  {b.file}, row {b.row}, {b.column}={_short(b.value)}: {b.reason}" for b in self.first]
        more = [f"  and {self.bad - len(self.first)} more"] if self.bad > len(self.first) else []
        share = self.bad / self.rows
        enough = np.ceil(share * 10_000) / 10_000
        others = f", or leave them out by raising data.max_bad_share to {enough:g} or more"
        raise DataError(
            f"{self.bad} of {self.rows} rows of the {self.table} ({share:.4%}) cannot be used, more than "
            f"data.max_bad_share {max_bad_share} allows:\n"
            + "\n".join(lines + more)
            + "\nFix these rows"
            + others * (self.bad < self.rows)
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
        time_unit: TimeUnit | Literal["auto", "none"] = "auto",
        now_s: float | None = None,
        parts: dict[str, int] | None = None,
    ) -> None:
        """The cleaner of one log.

        Args:
            rejections: what is refused, and what is noted, is counted there.
            known_items: says which item ids [n] are in the catalogue, bool [n]; None takes every id.
            time_unit: of timestamps that are numbers; auto and none as in `data.source.timestamp_unit`.
            now_s: seconds since 1970, beyond which nothing was logged yet; None: the clock's.
            parts: the values that name the part of a row (`splits.part_values`); None: no row names one.
        """
        self._parts = parts
        self._rejections = rejections
        self._known_items = known_items
        self._units = UnitCheck(time_unit, time.time() if now_s is None else now_s)
        self._time_kind: str | None = None  # "number" or "date", fixed by the first usable timestamp
        self._row = 0  # rows so far, the time of a log without timestamps

    @classmethod
    def of(
        cls,
        settings: DataSettings,
        rejections: Rejections,
        known_items: Callable[[pa.Array], np.ndarray] | None,
    ) -> Self:
        """The cleaner of the log of a data set with these settings."""
        table = settings.source if isinstance(settings.source, TableSource) else None
        unit = "auto" if table is None else table.timestamp_unit
        return cls(rejections, known_items, time_unit=unit, parts=part_values(settings.split))

    @property
    def time_unit(self) -> TimeUnit | None:
        """What the timestamps count; None: nobody can tell."""
        return "us" if self._time_kind == "date" else self._units.unit

    def clean(self, batch: RawBatch) -> pa.RecordBatch:
        """The usable rows of a batch, in their order."""
        return self.clean_rows(batch)[0]

    def clean_rows(self, batch: RawBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        """The usable rows of a batch, in their order, and their rows in the file, int64 [m].

        Raises:
            DataError: timestamps before all whose unit can be told lie in the future.
        """
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
        judge.refuse("dwell_seconds", _holds(pc.less(dwell, 0)), "is negative")
        exposed = (
            as_text(batch.columns["exposed_by"])
            if "exposed_by" in batch.columns
            else pa.nulls(n, pa.string())
        )
        part = pa.nulls(n, pa.int8()) if self._parts is None else judge.parts(self._parts)
        exposure = [judge.propensities(), judge.slate_positions()]
        history = judge.histories(self._known_items)
        good = judge.close()
        columns = [
            users,
            items,
            pa.array(timestamps),
            ratings,
            click,
            dwell,
            exposed,
            part,
            *exposure,
            history,
        ]
        keep = pa.array(good)
        rows = pa.record_batch([column.filter(keep) for column in columns], schema=CLEAN_LOG)
        return rows, batch.rows[good]

    def _timestamps(self, judge: "_Judge", n: int) -> np.ndarray:
        first, self._row = self._row, self._row + n
        if "timestamp" not in judge.batch.columns:
            return np.arange(first, first + n, dtype=np.int64)
        values, kinds = parse_times(judge.batch.columns["timestamp"])
        judge.refuse("timestamp", kinds == "null", "is empty")
        judge.refuse("timestamp", kinds == "bad", "is no time")
        judge.refuse("timestamp", values < 0, "is negative")
        if judge.batch.columns["timestamp"].type in (pa.float16(), pa.float32()):
            narrow = is_inexact(judge.batch.columns["timestamp"])
            judge.refuse("timestamp", narrow, "is a float too narrow to hold it (write whole numbers)")
        usable = np.flatnonzero(judge.good)
        if self._time_kind is None and len(usable):
            self._time_kind = str(kinds[usable[0]])
        if self._time_kind:
            judge.refuse(
                "timestamp", kinds != self._time_kind, f"is no {self._time_kind} as the rows before it are"
            )
        if self._time_kind == "date":
            verdict = self._units.judge_dates(values, judge.good)
        else:
            verdict = self._units.judge_numbers(values, judge.good, judge.batch.file, judge.batch.rows)
        for reason, bad in verdict.refused.items():
            judge.refuse("timestamp", bad, reason)
        judge.note("timestamps_before_1990", verdict.early)
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
        self._noted: dict[str, np.ndarray] = {}
        self._rejections = rejections

    def refuse(
        self, column: str, bad: np.ndarray, reason: str, shown: dict[int, object] | None = None
    ) -> None:
        """Refuse the rows `bad` [n]; `shown` has their values for the message, if it is not the whole one."""
        for index in np.flatnonzero(bad & self.good):
            value = str(shown[int(index)] if shown else self.batch.columns[column][index].as_py())
            row = int(self.batch.rows[index])
            self._refused.append(
                BadRow(file=self.batch.file, row=row, column=column, value=value, reason=reason)
            )
        self.good &= ~bad

    def note(self, name: str, odd: np.ndarray) -> None:
        """Count rows, if they turn out to be good."""
        self._noted[name] = self._noted.get(name, np.zeros(len(odd), dtype=bool)) | odd

    def ids(self, column: str) -> pa.Array:
        """Trimmed text [n]; what it is for a refused row does not matter."""
        raw = self.batch.columns[column]
        trimmed, faults = judge_ids(raw)
        for reason, bad in faults.items():
            self.refuse(column, bad, reason)
        self.note("ids_with_outer_spaces", as_numpy(pc.not_equal(as_text(raw), trimmed).fill_null(False)))
        return trimmed

    def histories(self, known_items: Callable[[pa.Array], np.ndarray] | None) -> pa.LargeListArray:
        """list<text> [n], null where the log has none."""
        n = len(self.good)
        if "history" not in self.batch.columns:
            return pa.nulls(n, CLEAN_LOG.field("history").type)
        lists = text_lists(self.batch.columns["history"])
        self.refuse("history", as_numpy(lists.is_null()), "is no list of items")
        text = lists.flatten()
        owner = as_numpy(pc.list_parent_indices(lists))
        trimmed, faults = judge_ids(text)
        if known_items is not None:
            faults["is not in the catalogue"] = ~known_items(trimmed)
        for reason, bad in faults.items():
            rows, first = np.unique(owner[bad], return_index=True)
            ids = text.take(pa.array(np.flatnonzero(bad)[first])).to_pylist()
            shown: dict[int, object] = dict(zip(rows.tolist(), ids, strict=True))
            self.refuse("history", np.isin(np.arange(n), rows), f"holds an id that {reason}", shown)
        lengths = as_numpy(pc.list_value_length(lists).fill_null(0))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        return pa.LargeListArray.from_arrays(offsets, trimmed)

    def numbers(self, column: str) -> pa.Array:
        """Missing stays missing (null)."""
        if column not in self.batch.columns:
            return pa.nulls(len(self.good), pa.float32())
        raw = self.batch.columns[column]
        values = parse_numbers(raw)
        unusable = ~np.isfinite(values) & ~is_missing(raw)
        self.refuse(column, unusable, "is no number")
        return pa.array(values.astype(np.float32), mask=~np.isfinite(values))

    def propensities(self) -> pa.Array:
        """float32 [n] in (0, 1], null where unknown."""
        values = self.numbers("propensity")
        unknown = "(a propensity is a chance; leave it empty where it is not known)"
        self.refuse("propensity", _holds(pc.less_equal(values, 0)), f"is not above 0 {unknown}")
        self.refuse("propensity", _holds(pc.greater(values, 1)), f"is above 1 {unknown}")
        return values

    def slate_positions(self) -> pa.Array:
        """int32 [n], from 1 on, null where unknown."""
        values = self.numbers("slate_position")
        whole = _holds(pc.equal(values, pc.floor(values)))
        known = as_numpy(values.is_valid())
        self.refuse("slate_position", known & ~whole, "is no whole number")
        self.refuse(
            "slate_position", _holds(pc.less(values, 1)), "is below 1 (the first place of a slate is 1)"
        )
        self.refuse("slate_position", _holds(pc.greater(values, _LAST_PLACE)), f"is above {_LAST_PLACE}")
        return pc.if_else(pa.array(self.good), values, None).cast(pa.int32())

    def booleans(self, column: str) -> pa.Array:
        if column not in self.batch.columns:
            return pa.nulls(len(self.good), pa.bool_())
        encoded = pc.utf8_lower(
            pc.utf8_trim_whitespace(as_text(self.batch.columns[column]))
        ).dictionary_encode()
        truth = [(_TRUTH | _FALSEHOOD).get(text) for text in encoded.dictionary.to_pylist()]
        values = pa.array(truth, pa.bool_()).take(encoded.indices)
        unusable = as_numpy(values.is_null()) & ~is_missing(self.batch.columns[column])
        self.refuse(column, unusable, "is neither true nor false")
        return values

    def parts(self, values: dict[str, int]) -> pa.Array:
        """int8 [n]; `values` are those that name a part, with its number."""
        encoded = pc.utf8_trim_whitespace(as_text(self.batch.columns["part"])).dictionary_encode()
        known = pa.array([values.get(text) for text in encoded.dictionary.to_pylist()], pa.int8())
        numbers = known.take(encoded.indices)
        self.refuse("part", as_numpy(numbers.is_null()), f"names no part of data.split ({', '.join(values)})")
        return numbers

    def close(self) -> np.ndarray:
        """Report what was refused, in the order of the rows; returns which rows are good."""
        self._rejections.rows += len(self.batch.rows) + len(self.batch.malformed)
        for bad in sorted(self._refused, key=lambda bad: bad.row):
            self._rejections.add(bad)
        self._rejections.noted.update(
            {name: int((odd & self.good).sum()) for name, odd in self._noted.items()}
        )
        return self.good


def judge_ids(values: pa.Array) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """Ids [n] as text without the spaces around them, and which can't be used: reason -> bool [n]."""
    trimmed = pc.utf8_trim_whitespace(as_text(values)).fill_null("")
    return trimmed, {
        "is no UTF-8 text (write ids as text or whole numbers)": is_undecodable(values),
        "is a float too large to tell whole numbers apart (write whole numbers)": is_inexact(values),
        "is empty": as_numpy(pc.equal(trimmed, "")),
        "stands for a missing value": as_numpy(pc.is_in(trimmed, value_set=MISSING_WORDS)),
    }


def _holds(comparison: pa.Array) -> np.ndarray:
    """Where a comparison [n] is true, bool [n]; null, of a missing value, is false."""
    return as_numpy(comparison.fill_null(False))


def _short(value: str) -> str:
    return repr(value if len(value) <= _VALUE_LENGTH else f"{value[:_VALUE_LENGTH]}...")
