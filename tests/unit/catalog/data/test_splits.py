import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.catalog.data.settings import GlobalTime, LeaveLastTwoOut
from sluice.catalog.data.splits import TimeCuts, find_cuts, label_splits, positions_of, training_lengths
from sluice.catalog.errors import DataError

OFFSETS = np.array([0, 4, 7])  # one user with 4 interactions, one with 3


def test_leave_last_two_out_by_hand():
    labels = label_splits(OFFSETS, np.array([1, 2, 3, 4, 1, 1, 1]), LeaveLastTwoOut(), None)
    assert labels.tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert training_lengths(OFFSETS, labels).tolist() == [2, 1]


def test_global_time_by_hand():
    labels = label_splits(
        OFFSETS, np.array([10, 20, 30, 40, 5, 20, 29]), GlobalTime(), TimeCuts(valid_from=20, test_from=30)
    )
    assert labels.tolist() == [0, 1, 2, 2, 0, 1, 1]
    assert training_lengths(OFFSETS, labels).tolist() == [1, 1]


def test_training_length_of_a_user_who_only_tests_is_zero():
    labels = np.array([2, 2, 2, 2, 0, 0, 1])
    assert training_lengths(OFFSETS, labels).tolist() == [0, 2]


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
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("times", [[5] * 20, [1] * 18 + [2] * 2, [1] * 16 + [2] * 4, [1, 2]])
def test_cuts_refuse_an_empty_part(times):
    with pytest.raises(DataError, match="leaves a part empty"):
        find_cuts(lambda: iter([np.array(times)]), GlobalTime(valid_share=0.1, test_share=0.1))
