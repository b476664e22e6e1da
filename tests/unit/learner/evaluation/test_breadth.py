"""Breadth of lists by hand, the interval of a change of coverage, and the rule of narrower lists."""

import numpy as np
import pytest

from sluice.learner.evaluation.breadth import (
    coverage_change,
    head_items,
    is_narrower,
    measure_breadth,
)
from tests.tiny_data import ITEMS, tiny_dataset

HEAD = np.array([True, False, False, False, False])


def test_breadth_by_hand():
    lists = np.array([[0, 1, 2], [0, 3, -1], [0, 0, -1]])
    # Places with an item: 0 four times, 1, 2 and 3 once each.
    found = measure_breadth(lists, HEAD)
    assert found["coverage"] == 4 / 5
    assert found["head_share"] == 4 / 7
    assert found["duplicates"] == 1 / 7
    assert found["entropy"] == pytest.approx(-(4 / 7) * np.log(4 / 7) - 3 * (1 / 7) * np.log(1 / 7))


def test_lists_of_one_item_have_no_entropy_and_empty_lists_no_breadth():
    assert measure_breadth(np.array([[1], [1]]), HEAD)["entropy"] == 0
    empty = measure_breadth(np.array([[-1, -1]]), HEAD)
    assert empty == {"coverage": 0, "head_share": 0, "entropy": 0, "duplicates": 0}


def test_the_head_is_the_most_popular_tenth_before_validation(tmp_path):
    dataset = tiny_dataset(tmp_path)
    known = dataset.sequence[dataset.known_until("pretrain")]
    counts = np.bincount(known, minlength=ITEMS)
    head = head_items(dataset)
    assert head.sum() == ITEMS // 10
    assert counts[head].min() >= counts[~head].max() > counts[~head].min()


def shown(users, items, drawn, seed):
    """Each user is shown ten of the first `drawn` items."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.choice(drawn, 10, replace=False) for _ in range(users)])


def test_lists_over_fewer_items_cover_less_beyond_the_interval():
    users = np.arange(200)
    wide, narrow = shown(200, 400, 400, seed=0), shown(200, 400, 150, seed=1)
    difference, low, high = coverage_change(wide, narrow, users, items=400)
    assert difference == len(np.unique(narrow)) / 400 - len(np.unique(wide)) / 400
    assert low < difference < high < 0
    other, other_low, other_high = coverage_change(narrow, wide, users, items=400)
    assert (other, other_low, other_high) == pytest.approx((-difference, -high, -low))


def test_two_draws_from_the_same_items_are_within_the_interval():
    users, inside = np.arange(100), 0
    for seed in range(40):
        first, second = shown(100, 600, 600, 2 * seed), shown(100, 600, 600, 2 * seed + 1)
        _, low, high = coverage_change(first, second, users, items=600, resamples=100)
        inside += low <= 0 <= high
    assert inside >= 35


def test_the_same_lists_change_nothing_and_confidence_widens():
    users, lists = np.arange(50), shown(50, 90, 90, seed=0)
    assert coverage_change(lists, lists, users, items=90) == (0, 0, 0)
    later = shown(50, 90, 60, seed=1)
    _, low, high = coverage_change(lists, later, users, items=90, confidence=0.5)
    _, wide_low, wide_high = coverage_change(lists, later, users, items=90, confidence=0.95)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(1.96 / 0.6745, rel=1e-3)


def test_whole_users_are_drawn():
    # Ten users with ten rows each: a user whose rows are all alike stands for one row.
    rows, users = np.repeat(shown(10, 90, 90, seed=0), 10, axis=0), np.repeat(np.arange(10), 10)
    later = np.repeat(shown(10, 90, 40, seed=1), 10, axis=0)
    assert coverage_change(rows, later, users, 90) == pytest.approx(
        coverage_change(rows[::10], later[::10], np.arange(10), 90)
    )


@pytest.mark.parametrize(
    ("hr1", "hr50", "coverage", "narrower"),
    [
        (+0.01, (-0.03, -0.05, -0.01), (0.0, -0.01, 0.01), True),  # HR@1 up, HR@50 down
        (-0.01, (-0.03, -0.05, -0.01), (0.0, -0.01, 0.01), False),  # a worse policy, as broad as before
        (+0.01, (-0.03, -0.07, +0.01), (-0.02, -0.05, 0.01), False),  # within both intervals
        (-0.01, (+0.03, +0.01, +0.05), (-0.02, -0.03, -0.01), True),  # coverage down, whatever HR says
        (+0.01, (+0.03, +0.01, +0.05), (+0.02, +0.01, +0.03), False),
    ],
)
def test_the_rule_of_narrower_lists(hr1, hr50, coverage, narrower):
    changes = {"hr@1": (hr1, hr1 - 0.001, hr1 + 0.001), "hr@50": hr50, "coverage": coverage}
    assert is_narrower(changes) is narrower


def test_short_lists_have_no_hr50_to_fall():
    assert not is_narrower({"hr@1": (0.1, 0.0, 0.2), "coverage": (0.0, -0.1, 0.1)})
