"""Values of columns, by hand: what text, numbers and lists they are."""

import datetime
import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from sluice.catalog.values import (
    FAMILIES,
    as_text,
    family_of,
    is_inexact,
    is_missing,
    is_undecodable,
    number_lists,
    text_lists,
)

IDENTITY = uuid.UUID(int=2**127 + 5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            pa.array([1e15 + 3, 7.0, -2.0, 1.5, float("nan"), None]),
            ["1000000000000003", "7", "-2", "1.5", None, None],
        ),
        (pa.array([2.0**53 - 1, 3.0], pa.float64()), ["9007199254740991", "3"]),
        (pa.array([7.0, 0.5], pa.float32()), ["7", "0.5"]),
        (pa.array([1e22, float("inf")]), ["1e+22", "inf"]),
        (pa.array([Decimal("12.0"), Decimal("1.5")]), ["12", "1.5"]),
        (pa.array([Decimal("12.00"), Decimal("12.50"), None]), ["12", "12.50", None]),
        (pa.array([b"u1", "caf\u00e9".encode(), b"\xe9", None]), ["u1", "caf\u00e9", None, None]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
        (pa.array([IDENTITY.bytes, None], pa.uuid()), [str(IDENTITY), None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), ["18446744073709551615", "0"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_any_scalar_as_text(values, expected):
    assert as_text(values).to_pylist() == expected


def test_what_no_id_can_be_made_of_is_told():
    assert is_inexact(pa.array([2.0**53, 2.0**53 - 1, -(2.0**53), float("inf"), None])).tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert not is_inexact(pa.array([2**60])).any()
    narrow = pa.array([2.0**24, 2.0**24 - 1], pa.float32())
    assert is_inexact(narrow).tolist() == [True, False] and as_text(narrow).to_pylist()[1] == "16777215"
    assert is_undecodable(pa.array([b"\xff", b"a", None])).tolist() == [True, False, False]
    assert not is_undecodable(pa.array(["a", None])).any()
    assert is_missing(pa.array([float("nan"), 0.0, None])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        (pa.large_string(), "text"),
        (pa.dictionary(pa.int8(), pa.int64()), "whole"),
        (pa.float16(), "float"),
        (pa.binary(16), "bytes"),
        (pa.uuid(), "uuid"),
        (pa.date32(), "date"),
        (pa.timestamp("ns", "UTC"), "date"),
        (pa.list_(pa.float32()), "list"),
        (pa.list_(pa.string(), 3), "list"),
        (pa.large_list(pa.binary()), "list"),
        (pa.list_(pa.list_(pa.int8())), "list<item: list<item: int8>>"),
        (pa.struct([("a", pa.int8())]), "struct<a: int8>"),
        (pa.map_(pa.string(), pa.int8()), "map<string, int8>"),
        (pa.duration("s"), "duration[s]"),
    ],
)
def test_the_family_of_a_type(kind, family):
    assert family_of(kind) == family


def test_ids_are_text_or_whole_numbers_and_times_no_truths():
    assert "date" not in FAMILIES["id"] and "bool" not in FAMILIES["id"] and "list" not in FAMILIES["id"]
    assert "bool" not in FAMILIES["time"] and "date" in FAMILIES["time"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", ["1", "2"]),
        ("['a b', 'c']", ["a b", "c"]),
        ('["a, b", "it\'s"]', ["a, b", "it's"]),
        (r"['it\'s', 'caf\u00e9']", ["it's", "caf\u00e9"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),  # NumPy
        ("[1 2\n 3]", ["1", "2", "3"]),
        ("1 2 3", ["1", "2", "3"]),
        ("a|b;c", ["a", "b", "c"]),
        ("[The Saint, Heat]", ["The Saint", "Heat"]),
        ("[a]", ["a"]),
        ("[]", []),
        ("", []),
        (None, []),
        ("[1, 2", None),
        ("['a', 'b]", None),
        ("[[1, 2]]", None),
        ("[1 2 ... 98 99]", None),
        ("['1' '2' ... '99']", None),
        ("['a'] ['b']", None),
    ],
)
def test_lists_in_text(text, expected):
    assert text_lists(pa.array([text], pa.string())).to_pylist() == [expected]


def test_list_columns_as_lists_of_text():
    columns = [
        pa.array([[1, 2], None, []], pa.list_(pa.int64())),
        pa.array([[1.0, 2.0], None, []], pa.large_list(pa.float64())),
        pa.array([["1", "2"], None, []]),
    ]
    for column in columns:
        assert text_lists(column).to_pylist() == [["1", "2"], [], []]
        assert text_lists(column.slice(1)).to_pylist() == [[], []]
    assert text_lists(pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)).slice(1)).to_pylist() == [["3", "4"]]
    assert text_lists(pa.array([[float("nan"), 3.0]])).to_pylist() == [[None, "3"]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["<a_12><b_3><c_255>", "<a_0> <b_7>,<c_1>"], [[12, 3, 255], [0, 7, 1]]),
        (["<a12><b3>", "<12><3>"], [[12, 3], None]),
        (["<s0_12><s1_3>"], [[12, 3]]),
        ([["<a_1>", "<b_2>"], ["<a_3>", "<b_4>"]], [[1, 2], [3, 4]]),
        (["['<a_1>', '<b_2>']"], [[1, 2]]),
        (["<a_1><b_2>", "<b_2><a_1>"], [[1, 2], None]),  # the letters say that levels are swapped
        (["<a_1><b_2", "<a_1>x<b_2>", "<a_x>", "<a_1.5>"], [None, None, None, None]),
        (["['1', '2']", "1|2", "(1;2)", "1 x", "", None], [[1, 2], [1, 2], [1, 2], None, None, None]),
        ([[1, 2], None, []], [[1, 2], None, None]),
    ],
)
def test_lists_of_numbers_and_of_code_tokens(values, expected):
    assert number_lists(pa.array(values)) == expected


def test_a_date_is_text_as_an_attribute():
    assert as_text(pa.array([datetime.date(2024, 1, 31)])).to_pylist() == ["2024-01-31"]
    np.testing.assert_array_equal(is_missing(pa.array([datetime.date(2024, 1, 31), None])), [False, True])
