"""Ids, histories and times of a log that are not what they seem."""

import numpy as np
import pyarrow as pa
import pytest

from sluice.catalog.data.cleaning import LogCleaner, Rejections
from sluice.catalog.data.sources import RawBatch
from sluice.catalog.errors import DataError

NOW = 1_750_000_000


def clean(known=None, unit="auto", **columns):
    """The usable rows, what was refused and what was noted."""
    columns = {
        name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
    }
    n = len(columns["user_id"])
    rejections = Rejections("interactions")
    taken = None if known is None else lambda ids: np.array([i in known for i in ids.to_pylist()], dtype=bool)
    cleaner = LogCleaner(rejections, taken, unit, NOW)
    rows, numbers = cleaner.clean_rows(RawBatch(file="f", columns=columns, rows=np.arange(1, n + 1)))
    assert len(numbers) == len(rows)
    return rows, rejections, cleaner, numbers


def refused(rejections):
    return [(bad.row, bad.column, bad.reason.partition(" (")[0]) for bad in rejections.first]


def test_spaces_around_ids_are_taken_off_and_counted():
    rows, rejections, *_ = clean(
        user_id=["u1", " u1", "u1\t", "\u00a0u1", "u 1", "u1"],
        item_id=["a", "a ", "a", "a", "a", " "],
        timestamp=[1, 2, 3, 4, 5, 6],
    )
    assert rows.column("user_id").to_pylist() == ["u1", "u1", "u1", "u1", "u 1"]
    assert rows.column("item_id").to_pylist() == ["a"] * 5
    assert rejections.noted["ids_with_outer_spaces"] == 3
    assert refused(rejections) == [(6, "item_id", "is empty")]


def test_ids_that_stand_for_nothing_are_refused_with_their_row():
    rows, rejections, _, numbers = clean(
        user_id=[1.0, float("nan"), None, 2.0**53, 2.5], item_id=list("abcde"), timestamp=[1, 2, 3, 4, 5]
    )
    assert rows.column("user_id").to_pylist() == ["1", "2.5"] and numbers.tolist() == [1, 5]
    assert refused(rejections) == [
        (2, "user_id", "is empty"),
        (3, "user_id", "is empty"),
        (4, "user_id", "is a float too large to tell whole numbers apart"),
    ]
    words = ["nan", "NaN", "None", "null", "NULL", "<NA>"]
    _, rejections, *_ = clean(user_id=[*words, "Nan", "none"], item_id=["a"] * 8, timestamp=[1] * 8)
    assert refused(rejections) == [(row, "user_id", "stands for a missing value") for row in range(1, 7)]


def test_bytes_that_are_text_are_ids_and_others_are_refused():
    rows, rejections, *_ = clean(
        user_id=pa.array([b"u1", b"\xc8\x00", None]), item_id=["a", "b", "c"], timestamp=[1, 2, 3]
    )
    assert rows.column("user_id").to_pylist() == ["u1"]
    assert refused(rejections) == [(2, "user_id", "is no UTF-8 text"), (3, "user_id", "is empty")]


def test_histories_are_lists_of_known_ids():
    rows, rejections, *_ = clean(
        known={"a", "b", "c"},
        user_id=["u"] * 6,
        item_id=["c"] * 6,
        timestamp=[1, 2, 3, 4, 5, 6],
        history=["['a', ' b ']", None, "[a, x]", "['a', None]", "[a", "[x, y]"],
    )
    assert rows.column("history").to_pylist() == [["a", "b"], []]
    assert [(bad.row, bad.column, bad.value, bad.reason) for bad in rejections.first] == [
        (3, "history", "x", "holds an id that is not in the catalogue"),
        (4, "history", "None", "holds an id that stands for a missing value"),
        (5, "history", "[a", "is no list of items"),
        (6, "history", "x", "holds an id that is not in the catalogue"),
    ]


def test_without_a_history_column_there_are_none():
    rows, *_ = clean(user_id=["u"], item_id=["a"], timestamp=[1])
    assert rows.column("history").null_count == 1


def test_units_of_time_are_told_and_not_mixed():
    rows, rejections, cleaner, _ = clean(
        user_id=["u"] * 5, item_id=["a"] * 5, timestamp=[NOW, NOW - 60, NOW * 1000, 0, NOW * 2]
    )
    assert cleaner.time_unit == "s" and rows.column("timestamp").to_pylist() == [NOW, NOW - 60, 0]
    assert refused(rejections) == [
        (3, "timestamp", "is in milliseconds, and the rows before it have seconds"),
        (5, "timestamp", "is in the future, read as seconds since 1970"),
    ]
    assert rejections.noted["timestamps_before_1990"] == 1
    _, rejections, cleaner, _ = clean(unit="ms", user_id=["u"], item_id=["a"], timestamp=[NOW])
    assert refused(rejections) == [
        (1, "timestamp", "is in seconds, and data.source.timestamp_unit says milliseconds")
    ]
    rows, _, cleaner, _ = clean(unit="none", user_id=["u"], item_id=["a"], timestamp=[NOW * 2])
    assert cleaner.time_unit is None and len(rows) == 1


def test_times_in_narrow_floats_are_refused():
    times = pa.array([float(NOW), 5.0], pa.float32())
    _, rejections, *_ = clean(user_id=["u"] * 2, item_id=["a"] * 2, timestamp=times)
    assert refused(rejections) == [(1, "timestamp", "is a float too narrow to hold it")]
    rows, *_ = clean(user_id=["u"] * 2, item_id=["a"] * 2, timestamp=[NOW * 1e9, NOW * 1e9 - 1e6])
    assert len(rows) == 2


def test_dates_in_the_future_are_refused():
    rows, rejections, cleaner, _ = clean(
        user_id=["u"] * 3, item_id=["a"] * 3, timestamp=["2024-01-01", "2999-01-01", "1900-01-01"]
    )
    assert cleaner.time_unit == "us" and len(rows) == 1
    assert refused(rejections) == [
        (2, "timestamp", "is in the future"),
        (3, "timestamp", "is negative"),
    ]


def test_the_message_is_short_where_a_value_is_long_and_offers_no_way_out_where_all_rows_are_bad():
    _, rejections, *_ = clean(user_id=["u"], item_id=["a"], timestamp=[1], history=["[" + "a, " * 500])
    with pytest.raises(DataError) as caught:
        rejections.check(0.0)
    message = str(caught.value)
    assert "..." in message and len(message) < 500
    assert message.endswith("\nFix these rows") and len(rejections.first[0].value) > 1000
