import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.catalog.data.split_settings import ColumnSplit, FileSplit, FreshLogs, GlobalTime, LeaveLastTwoOut
from sluice.catalog.data.splits import (
    TimeCuts,
    count_late_rows,
    find_cuts,
    label_splits,
    lengths_until,
    part_values,
    positions_of,
)
from sluice.catalog.errors import DataError

OFFSETS = np.array([0, 4, 7])  # one user with 4 interactions, one with 3


def test_leave_last_two_out_by_hand():
    labels = label_splits(OFFSETS, np.array([1, 2, 3, 4, 1, 1, 1]), LeaveLastTwoOut(), None)
    assert labels.tolist() == [0, 0, 2, 3, 0, 2, 3]
    assert lengths_until(OFFSETS, labels, 0).tolist() == [2, 1]
    assert lengths_until(OFFSETS, labels, 1).tolist() == [2, 1]
    assert lengths_until(OFFSETS, labels, 2).tolist() == [3, 2]


def test_global_time_by_hand():
    labels = label_splits(
        OFFSETS, np.array([10, 20, 30, 40, 5, 20, 29]), GlobalTime(), TimeCuts(valid_from=20, test_from=30)
    )
    assert labels.tolist() == [0, 2, 3, 3, 0, 2, 2]
    assert lengths_until(OFFSETS, labels, 0).tolist() == [1, 1]


def test_a_user_who_only_tests_has_nothing_before():
    labels = np.array([3, 3, 3, 3, 0, 0, 2])
    assert lengths_until(OFFSETS, labels, 0).tolist() == [0, 2]


def test_fresh_logs_by_user_by_hand():
    # Ten interactions: 6, 2, 1, 1. Seven: fresh from 4.2, valid from 5.6, test from 6.3.
    offsets = np.array([0, 10, 17])
    labels = label_splits(offsets, np.zeros(17, dtype=np.int64), FreshLogs(), None)
    assert labels[:10].tolist() == [0] * 6 + [1] * 2 + [2, 3]
    assert labels[10:].tolist() == [0] * 4 + [1, 2, 3]
    assert lengths_until(offsets, labels, 0).tolist() == [6, 4]
    assert lengths_until(offsets, labels, 1).tolist() == [8, 5]


def test_fresh_logs_by_time_by_hand():
    split = FreshLogs(by="time")
    times = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    cuts = find_cuts(lambda: iter([times[5:], times[:5]]), split)
    assert cuts == TimeCuts(fresh_from=6, valid_from=8, test_from=9)
    offsets = np.array([0, 4, 10])
    assert label_splits(offsets, times, split, cuts).tolist() == [0] * 6 + [1, 1, 2, 3]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_fresh_parts_of_a_user_follow_each_other(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = label_splits(offsets, np.zeros(offsets[-1], dtype=np.int64), FreshLogs(), None)
    for user, length in enumerate(lengths):
        own = labels[offsets[user] : offsets[user + 1]]
        assert (np.diff(own) >= 0).all() and own[-1] == 3
        counts = np.bincount(own, minlength=4)
        assert counts[0] == int(np.floor(length * 0.6 + 1e-9)) and counts.sum() == length


def test_shares_that_leave_nothing_to_pretrain_on_are_refused():
    with pytest.raises(ValueError, match="must leave a share for pretraining"):
        FreshLogs(fresh_share=0.8)


def test_positions_begin_anew_for_every_user():
    assert positions_of(OFFSETS).tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_cuts_by_hand():
    # places floor(10 * .6) = 6 and floor(10 * .8) = 8 of 0..9, times a hundred
    chunks = [
        np.array([900, 0, 500]),
        np.array([], dtype=np.int64),
        np.array([100, 800, 200, 300, 700, 400, 600]),
    ]
    cuts = find_cuts(lambda: iter(chunks), GlobalTime(valid_share=0.2, test_share=0.2))
    assert (cuts.valid_from, cuts.test_from) == (600, 800)


@given(
    times=st.lists(st.integers(0, 2**62), min_size=40, max_size=120, unique=True),
    pieces=st.integers(1, 5),
)
def test_cuts_are_the_exact_order_statistics(times, pieces):
    chunks = np.array_split(np.array(times, dtype=np.int64), pieces)
    cuts = find_cuts(lambda: iter(chunks), GlobalTime(valid_share=0.25, test_share=0.125))
    ordered = sorted(times)
    assert cuts.valid_from == ordered[int(len(times) * 0.625)]
    assert cuts.test_from == ordered[int(len(times) * 0.875)]


def test_cuts_keep_equal_timestamps_together():
    times = np.array([1, 2, 3, 4, 5, 5, 5, 6, 7, 7])
    cuts = find_cuts(lambda: iter([times]), GlobalTime(valid_share=0.2, test_share=0.2))
    labels = label_splits(np.array([0, 10]), times, GlobalTime(), cuts)
    assert (cuts.valid_from, cuts.test_from) == (5, 7)
    assert labels.tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("times", [[5] * 20, [1] * 18 + [2] * 2, [1] * 16 + [2] * 4, [1, 2]])
def test_cuts_refuse_an_empty_part(times):
    with pytest.raises(DataError, match="leaves a part empty"):
        find_cuts(lambda: iter([np.array(times)]), GlobalTime(valid_share=0.1, test_share=0.1))


def cut_at(times, unit="s", **moments):
    split = FreshLogs(by="time", **moments) if "fresh_from" in moments else GlobalTime(**moments)
    return find_cuts(lambda: iter(np.array_split(np.array(times, dtype=np.int64), 3)), split, unit)


JANUARY = 1_704_067_200  # 2024-01-01T00:00:00 in seconds
DAYS = [JANUARY + 86_400 * day for day in range(10)]


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_moments_are_brought_to_the_unit_of_the_log(unit, per_second):
    times = [day * per_second for day in DAYS]
    expected = TimeCuts(valid_from=times[4], test_from=times[6])
    for valid_from in ("2024-01-05", "2024-01-05T01:00:00+01:00", DAYS[4], DAYS[4] * 1000, DAYS[4] * 10**6):
        assert cut_at(times, unit, valid_from=valid_from, test_from="2024-01-07") == expected
    cuts = cut_at(times, unit, fresh_from="2024-01-02", valid_from="2024-01-05", test_from="2024-01-07")
    assert (cuts.fresh_from, cuts.valid_from, cuts.test_from) == (times[1], times[4], times[6])


def test_a_log_of_steps_is_cut_at_steps():
    assert cut_at(range(10), None, valid_from=4, test_from=9) == TimeCuts(valid_from=4, test_from=9)
    with pytest.raises(
        DataError, match=r"split\.valid_from is '2024-01-05', and the times of the log are no"
    ):
        cut_at(range(10), None, valid_from="2024-01-05", test_from=9)


@pytest.mark.parametrize(
    "moments",
    [
        {"valid_from": "2024-01-07", "test_from": "2024-01-05"},
        {"valid_from": "2024-01-05", "test_from": "2024-01-05"},
        {"valid_from": "2024-01-01", "test_from": "2024-01-05"},
        {"valid_from": "2024-01-05", "test_from": "2024-01-10T00:00:01"},
        {"fresh_from": "2024-01-05", "valid_from": "2024-01-04", "test_from": "2024-01-06"},
    ],
)
def test_moments_out_of_order_or_outside_the_log_are_refused_with_its_range(moments):
    with pytest.raises(
        DataError, match=r"from 1704067200 \(2024-01-01T00:00:00\) to 1704844800 \(2024-01-10T"
    ):
        cut_at(DAYS, **moments)


def test_the_last_moment_of_the_log_may_be_test():
    assert cut_at(DAYS, valid_from="2024-01-05", test_from="2024-01-10").test_from == DAYS[9]


def test_the_values_of_parts():
    assert part_values(GlobalTime()) is None
    assert part_values(FileSplit()) == {"pretrain": 0, "fresh": 1, "valid": 2, "test": 3}
    split = ColumnSplit(pretrain=("train", "old"), fresh=(), valid=("dev",))
    assert part_values(split) == {"train": 0, "old": 0, "dev": 2, "test": 3}
    with pytest.raises(ValueError, match="split column are read from the log"):
        label_splits(OFFSETS, np.arange(7), split, None)


def test_late_rows_are_those_earlier_than_one_before_them():
    assert count_late_rows(OFFSETS, np.array([1, 5, 4, 4, 2, 2, 3])) == 2
    assert count_late_rows(OFFSETS, np.array([1, 2, 3, 4, 0, 1, 2])) == 0
