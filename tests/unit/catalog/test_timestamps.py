"""Units of times, and times that cannot be; the clock is the test's."""

import numpy as np
import pytest

from sluice.catalog.errors import DataError
from sluice.catalog.timestamps import UnitCheck

NOW = 1_750_000_000
DAY = 86_400


def judge(check, *values, usable=None):
    values = np.asarray(values, dtype=np.int64)
    usable = np.ones(len(values), dtype=bool) if usable is None else np.asarray(usable)
    verdict = check.judge_numbers(values, usable, "f", np.arange(1, len(values) + 1))
    reasons = {
        reason.partition(",")[0]: np.flatnonzero(bad).tolist() for reason, bad in verdict.refused.items()
    }
    return {reason: rows for reason, rows in reasons.items() if rows}, np.flatnonzero(verdict.early).tolist()


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_the_unit_is_told_from_the_size(unit, factor):
    check = UnitCheck("auto", NOW)
    assert judge(check, 631_152_000 * factor, NOW * factor, (NOW + DAY) * factor) == ({}, [])
    assert check.unit == unit


@pytest.mark.parametrize(
    ("unit", "factor", "name"),
    [
        ("s", 1, "seconds"),
        ("ms", 10**3, "milliseconds"),
        ("us", 10**6, "microseconds"),
        ("ns", 10**9, "nanoseconds"),
    ],
)
def test_numbers_in_another_unit_are_refused(unit, factor, name):
    others = [value for value in (NOW, NOW * 10**3, NOW * 10**6, NOW * 10**9) if value != NOW * factor]
    for check in (UnitCheck("auto", NOW), UnitCheck(unit, NOW)):
        refused, early = judge(check, NOW * factor, *others)
        assert sorted(row for rows in refused.values() for row in rows) == [1, 2, 3] and early == []
        assert all(reason.startswith("is in ") and not reason.endswith(f" {name}") for reason in refused)
        assert check.unit == unit


def test_the_future_is_refused_and_what_lies_before_1990_is_counted():
    check = UnitCheck("auto", NOW)
    refused, early = judge(check, NOW, NOW + DAY + 1, 3_000_000_000, 0, 631_151_999, NOW - 1)
    assert refused == {"is in the future": [1, 2]} and early == [3, 4]
    milli = UnitCheck("auto", NOW)
    assert judge(milli, NOW * 1000, (NOW + DAY) * 1000 + 1) == ({"is in the future": [1]}, [])


def test_rows_that_are_refused_already_count_for_nothing():
    check = UnitCheck("auto", NOW)
    assert judge(check, NOW * 1000, NOW, 0, usable=[False, True, False]) == ({}, [])
    assert check.unit == "s"


def test_numbers_that_are_no_epochs_are_taken_as_they_are():
    check = UnitCheck("auto", NOW)
    assert judge(check, 0, 5, 20_240_131, 10**8) == ({}, []) and check.unit is None
    off = UnitCheck("none", NOW)
    assert judge(off, NOW, NOW * 1000, 10**18) == ({}, []) and off.unit is None


def test_the_future_is_found_before_the_unit_is_known():
    check = UnitCheck("auto", NOW)
    assert judge(check, 7, 3_000_000_000, 5) == ({}, [])
    with pytest.raises(
        DataError, match=r"^f, row 2, timestamp='3000000000': is in the future, read as seconds"
    ):
        judge(check, NOW)
    fits = UnitCheck("auto", NOW)
    judge(fits, 3_000_000_000)
    assert judge(fits, NOW * 1000) == ({}, []) and fits.unit == "ms"


def test_dates_are_held_to_the_past_too():
    micros = np.asarray([NOW, NOW + DAY, NOW + DAY + 1, 0]) * 10**6
    verdict = UnitCheck("auto", NOW).judge_dates(micros, np.ones(4, dtype=bool))
    assert {reason: bad.tolist() for reason, bad in verdict.refused.items()} == {
        "is in the future": [False, False, True, False]
    }
    assert verdict.early.tolist() == [False, False, False, True]
