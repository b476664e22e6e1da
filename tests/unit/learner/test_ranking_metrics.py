"""Ranking metrics against numbers worked out by hand."""

import numpy as np
import pytest

from sluice.learner.ranking_metrics import bootstrap_intervals, bootstrap_mean, per_user, rank_of


def test_metrics_of_one_target_by_hand():
    values = per_user(np.array([1, 2, 5, 6, 10, 11, 0]))
    assert values["hr@1"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert values["hr@5"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert values["hr@10"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert values["ndcg@5"] == pytest.approx([1, 0.63092975, 0.38685281, 0, 0, 0, 0])
    assert values["ndcg@10"] == pytest.approx([1, 0.63092975, 0.38685281, 0.35620719, 0.28906483, 0, 0])
    assert values["mrr"] == pytest.approx([1, 1 / 2, 1 / 5, 1 / 6, 1 / 10, 1 / 11, 0])


def test_rank_is_one_based_and_zero_when_absent():
    lists = np.array([[7, 3, 9], [7, 3, 9], [7, 3, 9], [-1, -1, 4]])
    assert rank_of(np.array([7, 9, 4, 4]), lists).tolist() == [1, 3, 0, 3]


def test_bootstrap_interval_holds_the_mean_and_narrows_with_users():
    rng = np.random.default_rng(1)
    few, many = rng.random(50), rng.random(5000)
    low, high = bootstrap_mean(few)
    assert low < few.mean() < high
    assert bootstrap_mean(many)[1] - bootstrap_mean(many)[0] < (high - low) / 4


def test_a_constant_has_no_spread():
    assert bootstrap_mean(np.ones(10)) == (1.0, 1.0)


def test_pairs_are_compared_user_by_user():
    better, worse = np.array([1, 1, 0, 20] * 30), np.array([0, 1, 0, 20] * 30)
    found = bootstrap_intervals(
        {"best": better, "control": worse}, "hr@10", (("best", "control"), ("best", "absent"))
    )
    assert found["best-control"][0] > 0.1  # a quarter of the users gained, none lost
    assert found["best-control"][1] < 0.4
    assert set(found) == {"best", "control", "best-control"}
