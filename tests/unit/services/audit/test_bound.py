"""The bound by hand: the order that a reward asks for, its scale, and a choice on other users."""

import numpy as np
import pytest

from sluice.services.audit.bound import STRENGTHS, beta_of, halves_of, measure_bound, ranks_by, spread_of
from sluice.services.audit.lists import ScoredLists


def lists_of(targets, items, log_probs, scores, users=None):
    return ScoredLists(
        users=np.arange(len(targets)) if users is None else np.asarray(users),
        targets=np.asarray(targets),
        items=np.asarray(items),
        log_probs=np.asarray(log_probs, dtype=np.float64),
        scores=np.asarray(scores, dtype=np.float64),
    )


def test_the_order_is_log_prob_plus_scaled_score():
    scores = [[-1.0, 1.0, 0.0], [-3.0, 0.0, 3.0]]
    lists = lists_of([3, 3], [[1, 2, 3]] * 2, [[-1.0, -1.2, -2.0]] * 2, scores)
    spread = (np.std([-1, 1, 0]) + np.std([-3, 0, 3])) / 2
    assert spread_of(lists.scores) == pytest.approx(spread)
    assert ranks_by(lists, 0.0).tolist() == [3, 3]
    # row 1: the target's -2 + 3 g / spread against the -1.2 of an item with score 0
    tipping = 0.8 * spread / 3
    assert ranks_by(lists, tipping * 0.99)[1] == 2 and ranks_by(lists, tipping * 1.01)[1] == 1
    assert ranks_by(lists, 100.0).tolist() == [2, 1], "the ranker's order alone"
    assert ranks_by(lists, 100.0, np.array([True, False])).tolist() == [2, 3]


def test_ties_keep_the_start_s_order_and_what_is_not_listed_has_no_rank():
    lists = lists_of([2, 9], [[1, 2]] * 2, [[-1.0, -1.0]] * 2, [[5.0, 5.0]] * 2)
    assert ranks_by(lists, 4.0).tolist() == [2, 0]
    assert spread_of(lists.scores) == 1.0, "scores that are all alike have no scale"


def test_places_without_an_item_come_last():
    lists = lists_of([2], [[1, 2, -1]], [[-1.0, -2.0, -np.inf]], [[-9.0, 8.0, np.nan]])
    assert spread_of(lists.scores) == pytest.approx(8.5)
    assert ranks_by(lists, 16.0).tolist() == [1]


def worlds(users, right):
    """Lists of 20 with the target at place 11; the ranker has it first for the `right` users, else last."""
    items = np.tile(np.arange(20), (users, 1))
    log_probs = np.tile(-0.01 * np.arange(20.0), (users, 1))
    scores = np.tile(-np.arange(20.0), (users, 1))
    scores[:, 10] = np.where(right, 30.0, -30.0)
    return lists_of(np.full(users, 10), items, log_probs, scores)


def test_a_perfect_ranker_brings_every_target_into_the_ten():
    bound = measure_bound(worlds(40, np.ones(40, dtype=bool)))
    assert bound.start["hr@10"] == 0
    gain = bound.gain["hr@10"]
    assert (gain.value, gain.low, gain.high, gain.users) == (1.0, 1.0, 1.0, 40)
    assert bound.gain["ndcg@10"].value > 0.2
    # the weakest of the strengths that do so: more cannot be better
    assert all(np.isfinite(beta) for beta in bound.betas)
    betas = [beta for beta, _ in bound.curve]
    assert betas[0] == np.inf and betas[1:] == sorted(betas[1:], reverse=True)


def test_a_ranker_that_is_wrong_adds_nothing_and_the_start_s_order_is_chosen():
    bound = measure_bound(worlds(40, np.zeros(40, dtype=bool)))
    assert bound.gain["hr@10"].value == 0 and bound.betas == (np.inf, np.inf)


def test_beta_is_chosen_on_the_users_it_is_not_measured_on():
    users = np.arange(40)
    half = halves_of(users)
    assert half.sum() == 20 and set(half.tolist()) == {0, 1}
    # The ranker is right for the users of half 0 alone: half 1 is measured with what serves half 0.
    bound = measure_bound(worlds(40, half == 0))
    assert bound.gain["hr@10"].value == 0, "half 0 is left as it is, half 1 has nothing to lose"
    assert np.isinf(bound.betas[0]) and np.isfinite(bound.betas[1])


def test_the_prompts_of_a_user_are_in_one_half():
    users = np.repeat(np.arange(10), 3)
    assert (halves_of(users).reshape(10, 3).std(axis=1) == 0).all()


def test_re_ranking_may_be_held_to_some_prompts():
    right = np.arange(40) < 20
    everybody, known = measure_bound(worlds(40, right)), measure_bound(worlds(40, right), right)
    assert known.gain["hr@10"].value == 0.5 == everybody.gain["hr@10"].value
    start = ranks_by(worlds(40, right), 0.0)
    assert (ranks_by(worlds(40, right), 16.0, right)[~right] == start[~right]).all()


def test_betas_are_in_the_unit_of_the_scores():
    lists = worlds(4, np.ones(4, dtype=bool))
    assert beta_of(lists, 0.0) == np.inf
    assert beta_of(lists, 2.0) == pytest.approx(spread_of(lists.scores) / 2)
    assert STRENGTHS[0] == 0 and STRENGTHS[-1] == 128
