"""Ranking metrics against numbers worked out by hand."""

import numpy as np
import pytest

from sluice.learner.ranking_metrics import bootstrap_intervals, bootstrap_mean, per_user, rank_of


def test_metrics_of_one_target_by_hand():
    values = per_user(np.array([1, 2, 5, 6, 10, 11, 0]))
    assert values["hr@1"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert values["hr@5"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert values["hr@10"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert values["hr@50"].tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert values["ndcg@5"] == pytest.approx([1, 0.63092975, 0.38685281, 0, 0, 0, 0])
    assert values["ndcg@10"] == pytest.approx([1, 0.63092975, 0.38685281, 0.35620719, 0.28906483, 0, 0])
    assert values["mrr"] == pytest.approx([1, 1 / 2, 1 / 5, 1 / 6, 1 / 10, 1 / 11, 0])


def test_a_short_list_says_nothing_of_the_places_that_it_has_not():
    ranks = np.array([1, 0])
    assert "hr@50" not in per_user(ranks, width=49) and "hr@10" in per_user(ranks, width=49)
    assert per_user(ranks, width=50)["hr@50"].tolist() == [1, 0]


def test_rank_is_one_based_and_zero_when_absent():
    lists = np.array([[7, 3, 9], [7, 3, 9], [7, 3, 9], [-1, -1, 4]])
    assert rank_of(np.array([7, 9, 4, 4]), lists).tolist() == [1, 3, 0, 3]


def test_bootstrap_interval_holds_the_mean_and_narrows_with_users():
    rng = np.random.default_rng(1)
    few, many = rng.random(50), rng.random(5000)
    low, high = bootstrap_mean(few, np.arange(50))
    assert low < few.mean() < high
    narrow = bootstrap_mean(many, np.arange(5000))
    assert narrow[1] - narrow[0] < (high - low) / 4


def test_the_interval_has_the_confidence_that_is_asked_for():
    values, users = np.random.default_rng(0).random(400), np.arange(400)
    widths = [np.diff(bootstrap_mean(values, users, confidence=share))[0] for share in (0.5, 0.95)]
    assert widths[1] / widths[0] == pytest.approx(1.96 / 0.6745, rel=0.1)
    (low, high), error = bootstrap_mean(values, users), values.std() / 20
    assert (high - low) / error == pytest.approx(2 * 1.96, rel=0.1)


def test_a_constant_has_no_spread():
    assert bootstrap_mean(np.ones(10), np.arange(10)) == (1.0, 1.0)


def test_rows_of_one_user_count_as_one_user():
    # Four users whose ten rows all agree know no more than four rows do.
    values, users = np.repeat([0.0, 1.0, 1.0, 0.0], 10), np.repeat(np.arange(4), 10)
    assert bootstrap_mean(values, users) == bootstrap_mean(np.array([0.0, 1.0, 1.0, 0.0]), np.arange(4))
    assert np.diff(bootstrap_mean(values, np.arange(40)))[0] < 0.5 < np.diff(bootstrap_mean(values, users))[0]


def test_a_user_counts_by_the_rows_it_has():
    # One user with nine rows of 1, one with a row of 0: the mean is of rows, .9, and not of users, .5.
    low, high = bootstrap_mean(np.array([1.0] * 9 + [0.0]), np.array([7] * 9 + [3]))
    assert (low, high) == (0.0, 1.0)


def test_the_interval_is_of_the_mean_over_rows():
    # 100 users with nine rows of 1 and 100 with one row of 0: over rows the mean is .9, over users .5.
    values, users = np.repeat([1.0, 0.0], [900, 100]), np.repeat(np.arange(200), [9] * 100 + [1] * 100)
    low, high = bootstrap_mean(values, users)
    assert 0.8 < low < 0.9 < high < 0.95


def test_intervals_over_users_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), rng.integers(1, 20, 60))
    covered = covered_by_rows = 0
    for _ in range(200):
        values = (rng.random(len(users)) < rng.beta(1, 3, 60)[users]).astype(float)  # the mean is 1/4
        low, high = bootstrap_mean(values, users, resamples=400)
        covered += low <= 0.25 <= high
        low, high = bootstrap_mean(values, np.arange(len(users)), resamples=400)
        covered_by_rows += low <= 0.25 <= high
    assert 0.89 < covered / 200 < 0.99
    assert covered_by_rows / 200 < 0.8


def test_pairs_are_compared_user_by_user():
    better, worse = np.array([1, 1, 0, 20] * 30), np.array([0, 1, 0, 20] * 30)
    found = bootstrap_intervals(
        {"best": better, "control": worse}, np.arange(120), "hr@10", (("best", "control"), ("best", "absent"))
    )
    assert found["best-control"][0] > 0.1  # a quarter of the users gained, none lost
    assert found["best-control"][1] < 0.4
    assert set(found) == {"best", "control", "best-control"}


def test_the_weighted_interval_is_of_the_ratio_of_sums():
    # 100 users of weight 9 with value 1 and 100 of weight 1 with value 0: the weighted mean is .9.
    values, weights = np.repeat([1.0, 0.0], 100), np.repeat([9.0, 1.0], 100)
    low, high = bootstrap_mean(values, np.arange(200), weights=weights)
    assert 0.84 < low < 0.9 < high < 0.95
    # A whole weight says how often the row stands there.
    rows = np.repeat(np.arange(200), weights.astype(int))
    assert (low, high) == pytest.approx(bootstrap_mean(values[rows], rows))


def test_equal_weights_change_nothing_and_rows_without_weight_are_not_there():
    rng = np.random.default_rng(3)
    values, users = rng.random(300), np.repeat(np.arange(100), 3)
    plain = bootstrap_mean(values, users)
    assert bootstrap_mean(values, users, weights=np.full(300, 4.0)) == pytest.approx(plain)
    weights = np.where(users < 50, 1.0, 0.0)
    fewer = bootstrap_mean(values[:150], users[:150])
    assert bootstrap_mean(values, users, weights=weights) == pytest.approx(fewer)


def test_the_weighted_interval_covers_the_weighted_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    users, covered = np.repeat(np.arange(80), 3), 0
    for _ in range(200):
        rare = rng.random(240) < 0.3
        values = (rng.random(240) < np.where(rare, 0.6, 0.2)).astype(float)
        low, high = bootstrap_mean(values, users, resamples=400, weights=np.where(rare, 7.0, 3.0))
        covered += low <= (0.3 * 7 * 0.6 + 0.7 * 3 * 0.2) / (0.3 * 7 + 0.7 * 3) <= high
    assert 0.89 < covered / 200 < 0.99


def test_weighted_differences_are_paired():
    ranks = {"best": np.array([1, 0, 1, 0] * 20), "start": np.array([1, 0, 0, 0] * 20)}
    users, weights = np.arange(80), np.tile([5.0, 1.0, 2.0, 2.0], 20)
    found = bootstrap_intervals(ranks, users, "hr@10", (("best", "start"),), weights)
    change = (ranks["best"] - ranks["start"]).astype(float)
    assert found["best-start"] == list(bootstrap_mean(change, users, weights=weights))
    assert found["best-start"] != list(bootstrap_mean(change, users))
    assert found["best"] == list(bootstrap_mean(ranks["best"].astype(float), users, weights=weights))
