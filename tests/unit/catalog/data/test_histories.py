"""Rows with histories make the sequence that they were cut from, by hand and for many of them."""

import numpy as np
import pytest

from sluice.catalog.data.histories import FROM_HISTORY, join_rows


def rows_of(sequence, longest):
    """As MiniOneRec writes them: one row for each event but the first, with the events before it."""
    return [(sequence[max(0, place - longest) : place], sequence[place]) for place in range(1, len(sequence))]


def join(rows, times=None):
    histories, targets = zip(*rows, strict=True)
    return join_rows(histories, targets, times)


@pytest.mark.parametrize("longest", [1, 2, 3, 50])
@pytest.mark.parametrize("timed", [False, True])
def test_rows_in_order_give_the_sequence(longest, timed):
    sequence = [5, 3, 9, 3, 3, 7, 5, 1]
    rows = rows_of(sequence, longest)
    joined, bad = join(rows, list(range(10, 10 + len(rows))) if timed else None)
    assert (joined.items, joined.owners, bad, joined.repeated) == (
        sequence,
        [FROM_HISTORY, *range(len(rows))],
        [],
        0,
    )
    assert joined.next_owned() == [0, *range(len(rows))]


@pytest.mark.parametrize("seed", range(20))
def test_without_times_rows_may_come_in_any_order(seed):
    draw = np.random.default_rng(seed)
    sequence = draw.permutation(30).tolist()
    rows = rows_of(sequence, 3)
    order = draw.permutation(len(rows))
    joined, bad = join([rows[place] for place in order])
    assert (joined.items, bad, joined.repeated) == (sequence, [], 0)
    assert [order[owner] for owner in joined.owners[1:]] == list(range(len(rows)))


def test_a_row_that_stands_twice_says_nothing_new():
    rows = [row for row in rows_of([1, 2, 3, 4], 2) for _ in range(2)]
    for times in (None, [5, 5, 6, 6, 7, 7]):
        joined, bad = join(rows, times)
        assert (joined.items, joined.repeated, bad) == ([1, 2, 3, 4], 3, [])


def test_events_between_rows_come_from_histories():
    rows = [([1], 2), ([2, 3, 4], 5), ([4, 5], 6)]
    joined, bad = join(rows, [1, 2, 3])
    assert (joined.items, bad) == ([1, 2, 3, 4, 5, 6], [])
    assert joined.owners == [-1, 0, -1, -1, 1, 2]
    assert joined.next_owned() == [0, 0, 1, 1, 1, 2]


def test_rows_overlap_as_far_as_they_can():
    joined, bad = join([([1], 1), ([1, 1, 9], 5)], [1, 2])
    assert (joined.items, bad) == ([1, 1, 9, 5], [])


def test_a_longer_history_tells_what_came_first():
    joined, bad = join([([2], 3), ([1, 2, 3], 4)], [1, 2])
    assert (joined.items, joined.owners, bad) == ([1, 2, 3, 4], [-1, -1, 0, 1], [])
    joined, bad = join([([], 3), ([1, 2, 3, 4], 5)], [1, 2])
    assert (joined.items, joined.owners, bad) == ([1, 2, 3, 4, 5], [-1, -1, 0, -1, 1], [])


def test_the_first_event_may_be_a_row_too():
    joined, bad = join([([], 1), ([1], 2), ([1, 2], 3)], [1, 2, 3])
    assert (joined.items, joined.owners, bad) == ([1, 2, 3], [0, 1, 2], [])


@pytest.mark.parametrize(
    ("row", "time"),
    [
        (([8], 9), 4),  # nothing in common
        (([], 9), 4),  # nothing before it, and yet there were three
        (([1, 9], 3), 4),  # another event in between
        (([1], 2), 4),  # known, and at another time
    ],
)
def test_a_row_that_contradicts_those_before_is_refused(row, time):
    rows = [([1], 2), ([1, 2], 3)]
    joined, bad = join([*rows, row], [1, 2, time])
    assert (joined.items, bad) == ([1, 2, 3], [2])
    joined, bad = join([*rows, ([1, 2, 3], 4)], [1, 2, 3])
    assert (joined.items, bad) == ([1, 2, 3, 4], [])


def test_rows_of_one_time_may_come_in_any_order():
    joined, bad = join([([1, 2], 3), ([1], 2), ([1, 2, 3], 4)], [5, 5, 6])
    assert (joined.items, joined.owners, bad, joined.repeated) == ([1, 2, 3, 4], [-1, 1, 0, 2], [], 0)


def test_an_item_that_comes_back_goes_on_rather_than_back():
    joined, bad = join([([1], 2), ([2], 1), ([1], 2)], [1, 2, 3])
    assert (joined.items, bad) == ([1, 2, 1, 2], [])
