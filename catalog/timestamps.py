"""Times of a log: what a value says, in which unit, and whether it can be.

A whole or decimal number is a timestamp as it stands (decimals are cut off); dates and date-times become
microseconds since 1970 (UTC when they name no zone).

A number that lies between 1990 and tomorrow when it is read as seconds, milli-, micro- or nanoseconds since
1970 tells the unit of the whole log: these four spans do not meet. A log none of whose numbers lies there
counts something else, say rows or days, and any number will do.
"""

import datetime
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sluice.catalog.errors import DataError
from sluice.catalog.values import FLOAT_LIMITS, as_numpy, as_text, is_missing, parse_numbers

TimeUnit = Literal["s", "ms", "us", "ns"]

_WHOLE = r"^\s*[+-]?\d{1,18}\s*$"
_SIGNED = r"[+-]?\d+"
_INT64_LIMIT = 2.0**63
_UNITS: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_EARLIEST_S = 631_152_000  # 1990-01-01
_DAY_S = 86_400  # clocks and time zones differ


@dataclass(frozen=True, kw_only=True)
class TimeVerdict:
    """What is wrong with n timestamps."""

    refused: dict[str, np.ndarray]  # reason -> bool [n]
    early: np.ndarray  # bool [n], before 1990: it may stand for a time that is not known


class UnitCheck:
    """Holds the numbers of one log to one unit, and all its times to the past."""

    def __init__(self, unit: TimeUnit | Literal["auto", "none"], now_s: float) -> None:
        """`unit` auto: the first number that can be told decides. `now_s`: seconds since 1970."""
        self.unit: TimeUnit | None = None if unit in ("auto", "none") else unit  # type: ignore[assignment]
        self._given = self.unit is not None
        self._off = unit == "none"
        self._latest_s = int(now_s) + _DAY_S
        self._largest = (0, "")  # the largest number before the unit was known, and where it stands

    def judge_numbers(
        self, values: np.ndarray, usable: np.ndarray, where: str, rows: np.ndarray
    ) -> TimeVerdict:
        """The verdict on numbers int64 `[n]`, of which only `usable` bool `[n]` count.

        `where` names the file and `rows` int64 `[n]` the rows, for errors.

        Raises:
            DataError: a number before all whose unit can be told lies in the future by that unit.
        """
        if self._off:
            return _nothing_wrong(len(values))
        spans = {unit: self._in_span(values, unit) & usable for unit in _UNITS}
        unit = self.unit
        if unit is None:
            told = np.logical_or.reduce(list(spans.values()))
            if not told.any():
                self._remember(values, usable, where, rows)
                return _nothing_wrong(len(values))
            first = int(np.argmax(told))
            decided: TimeUnit = next(name for name, inside in spans.items() if inside[first])
            self._check_remembered(decided)
            unit = self.unit = decided
        latest = self._latest_s * _UNITS[unit]
        source = "data.source.timestamp_unit says" if self._given else "the rows before it have"
        refused = {
            f"is in {_NAMES[other]}, and {source} {_NAMES[unit]}": inside
            for other, inside in spans.items()
            if other != unit
        }
        elsewhere = np.logical_or.reduce(list(refused.values()))
        refused[self._future(unit)] = usable & (values > latest) & ~elsewhere
        early = usable & (values < _EARLIEST_S * _UNITS[unit]) & ~elsewhere
        return TimeVerdict(refused=refused, early=early)

    def judge_dates(self, micros: np.ndarray, usable: np.ndarray) -> TimeVerdict:
        """The verdict on dates, int64 `[n]` microseconds since 1970."""
        return TimeVerdict(
            refused={"is in the future": usable & (micros > self._latest_s * _UNITS["us"])},
            early=usable & (micros < _EARLIEST_S * _UNITS["us"]),
        )

    def _in_span(self, values: np.ndarray, unit: TimeUnit) -> np.ndarray:
        factor = _UNITS[unit]
        inside: np.ndarray = (values >= _EARLIEST_S * factor) & (values <= self._latest_s * factor)
        return inside

    def _future(self, unit: TimeUnit) -> str:
        return (
            f"is in the future, read as {_NAMES[unit]} since 1970 (if these are no such times, set "
            "data.source.timestamp_unit to none)"
        )

    def _remember(self, values: np.ndarray, usable: np.ndarray, where: str, rows: np.ndarray) -> None:
        if usable.any():
            place = int(np.argmax(np.where(usable, values, -1)))
            self._largest = max(self._largest, (int(values[place]), f"{where}, row {rows[place]}"))

    def _check_remembered(self, unit: TimeUnit) -> None:
        value, where = self._largest
        if value > self._latest_s * _UNITS[unit]:
            raise DataError(f"{where}, timestamp='{value}': {self._future(unit)}, as the rows after it are")


def parse_times(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Timestamps int64 [n] and what each is: "number", "date", "null" or "bad" (then its timestamp is 0)."""
    kinds = np.where(is_missing(values), "null", "bad").astype("<U6")
    result = np.zeros(len(values), dtype=np.int64)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        present = kinds != "null"
        micros = values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False).cast(
            pa.int64()
        )
        result[present] = as_numpy(micros.fill_null(0))[present]
        kinds[present] = "date"
        return result, kinds
    if pa.types.is_integer(values.type):
        present = kinds != "null"
        # An unsigned value beyond int64 wraps around to a negative one, which is refused as such.
        result[present] = as_numpy(values.cast(pa.int64(), safe=False).fill_null(0))[present]
        kinds[present] = "number"
        return result, kinds
    text = as_text(values)
    whole = pc.match_substring_regex(text, _WHOLE).fill_null(False)
    exact = pc.if_else(whole, pc.utf8_ltrim(pc.utf8_trim_whitespace(text), "+"), None).cast(pa.int64())
    is_whole = as_numpy(whole)
    result[is_whole] = as_numpy(exact.fill_null(0))[is_whole]
    numbers = parse_numbers(values)
    decimal = ~is_whole & (np.abs(np.nan_to_num(numbers, nan=np.inf)) < _INT64_LIMIT)
    result[decimal] = np.floor(numbers[decimal]).astype(np.int64)
    kinds[is_whole | decimal] = "number"
    for index in np.flatnonzero(decimal & (np.abs(np.nan_to_num(numbers)) > FLOAT_LIMITS[64])):
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


def _nothing_wrong(n: int) -> TimeVerdict:
    return TimeVerdict(refused={}, early=np.zeros(n, dtype=bool))


def _micros(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date or date-time, None where the text is neither."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
