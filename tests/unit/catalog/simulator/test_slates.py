"""Slates: drawn as by score + Gumbel noise, explored uniformly, with the propensity of the first slot."""

import numpy as np
import pytest

from sluice.catalog.simulator.slates import EMPTY, Logger, _place

SCORES = np.log(np.asarray([8, 4, 2, 1, 1], dtype=np.float32))
SHARES = np.asarray([8, 4, 2, 1, 1]) / 16
USERS = 20_000


def logger(available=(True,) * 5, users=USERS, scores=SCORES):
    allowed = np.tile(np.asarray(available), (users, 1))
    return Logger(np.tile(scores, (users, 1)), allowed, np.random.default_rng(7))


def shares_of(items):
    return np.bincount(items, minlength=5) / len(items)


def test_slots_follow_plackett_and_luce():
    slates, explored = logger().show(np.arange(USERS), 3, 0.0)
    assert not explored.any()
    assert shares_of(slates[:, 0]) == pytest.approx(SHARES, abs=0.012)
    # P(second is j) = sum over i != j of P(first is i) P(j) / (1 - P(i))
    odds = SHARES / (1 - SHARES)
    assert shares_of(slates[:, 1]) == pytest.approx(SHARES * (odds.sum() - odds), abs=0.012)


def test_a_slate_has_no_item_twice_and_none_that_is_not_available():
    slates, _ = logger((True, False, True, True, True)).show(np.arange(USERS), 4, 0.3)
    assert (np.sort(slates, axis=1) == [0, 2, 3, 4]).all()


def test_explored_slots_are_uniform_and_flagged():
    slates, explored = logger().show(np.arange(USERS), 1, 0.4)
    assert explored.mean() == pytest.approx(0.4, abs=0.012)
    assert shares_of(slates[explored]) == pytest.approx(np.full(5, 0.2), abs=0.018)
    assert shares_of(slates[~explored]) == pytest.approx(SHARES, abs=0.018)


def test_the_propensity_is_the_chance_at_the_first_slot():
    shop = logger()
    rows = np.arange(USERS)
    every = np.tile(np.arange(5), (USERS, 1))
    chance = shop.propensity(rows, every, 0.4)
    assert chance.dtype == np.float32 and chance.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert chance[0] == pytest.approx(0.6 * SHARES + 0.4 / 5)
    slates, _ = shop.show(rows, 3, 0.4)
    assert shares_of(slates[:, 0]) == pytest.approx(chance[0], abs=0.012)


def test_what_was_taken_out_is_not_shown_and_leaves_its_chance_to_the_rest():
    shop, rows = logger(), np.arange(USERS)
    shop.take_out(rows, np.zeros(USERS, dtype=np.int64))
    chance = shop.propensity(rows, np.tile(np.arange(5), (USERS, 1)), 0.2)
    assert chance[0, 1:] == pytest.approx(0.8 * np.asarray([4, 2, 1, 1]) / 8 + 0.2 / 4)
    slates, _ = shop.show(rows, 2, 0.0)
    assert not (slates == 0).any()
    assert shares_of(slates[:, 0])[1:] == pytest.approx(np.asarray([4, 2, 1, 1]) / 8, abs=0.012)


def test_items_that_are_left_by_no_draw_are_chosen_by_their_chance():
    """Nearly all of the chance is the first item's, so that the rest is hardly ever drawn."""
    scores = np.asarray([40, 2, 1, 0, 0], dtype=np.float32)
    slates, _ = logger(scores=scores, users=4000).show(np.arange(4000), 2, 0.0)
    assert (slates[:, 0] == 0).all()
    rest = np.exp(scores[1:]) / np.exp(scores[1:]).sum()
    assert shares_of(slates[:, 1])[1:] == pytest.approx(rest, abs=0.03)


def test_slots_stay_empty_when_items_run_out():
    shop = logger((False, True, False, True, False), users=50)
    slates, explored = shop.show(np.arange(50), 4, 0.5)
    assert (np.sort(slates, axis=1) == [EMPTY, EMPTY, 1, 3]).all()
    assert not explored[slates == EMPTY].any()
    nothing, _ = logger((False,) * 5, users=3).show(np.arange(3), 2, 0.5)
    assert (nothing == EMPTY).all()


def test_only_the_users_asked_for_are_served():
    available = np.asarray([[True, True, False], [False, True, True], [True, False, True]])
    shop = Logger(np.zeros((3, 3), dtype=np.float32), available, np.random.default_rng(0))
    slates, _ = shop.show(np.asarray([2, 0]), 2, 0.5)
    assert sorted(slates[0]) == [0, 2] and sorted(slates[1]) == [0, 1]
    assert shop.propensity(np.asarray([2]), np.asarray([[0, 2]]), 0.5) == pytest.approx(0.5)


def test_draws_go_to_the_empty_slots_in_their_order():
    slates = np.asarray([[EMPTY, 7, EMPTY], [1, EMPTY, 2]])
    drawn = np.asarray([[7, 5, 5, 6, 4], [3, 1, 8, 9, 9]])
    allowed = np.asarray([[True] * 5, [False, True, True, True, True]])
    assert _place(slates, drawn, allowed).tolist() == [[5, 7, 6], [1, 8, 2]]
