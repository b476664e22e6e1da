"""Thompson sampling finds the better policy, and its accounts add up."""

import numpy as np
import pytest

from sluice.services.ab.bandit import replay_thompson
from tests.unit.services.ab.test_sequences import draw_users

LOOKS = np.array([50, 500, 2000])


def table_of(*rates, users=2000, seed=0):
    stream = np.random.default_rng(seed)
    return np.stack([draw_users(stream, 1, users=users, rate=rate)[0] for rate in rates], axis=1)


def test_the_best_of_three_is_served_most_and_regret_flattens():
    table, means = table_of(0.10, 0.14, 0.08), np.array([0.10, 0.14, 0.08])
    told = replay_thompson(table, means, LOOKS, replays=200, seed=0)
    assert told.shares[:, -1, 1].mean() > 0.8 and told.favourites()[1] > 0.95
    assert told.shares.sum(axis=2) == pytest.approx(np.ones((200, 3)))
    early, late = told.regret[:, 1] / 500, (told.regret[:, 2] - told.regret[:, 1]) / 1500
    assert late.mean() < early.mean() / 2
    assert told.regret[:, -1].mean() < 0.4 * (means.max() - means).mean() * 2000


def test_equal_policies_share_the_users():
    table = table_of(0.1, 0.1)
    told = replay_thompson(table, np.array([0.1, 0.1]), LOOKS, replays=400, seed=0)
    assert told.shares[:, -1, 0].mean() == pytest.approx(0.5, abs=0.1)
    assert (told.regret == 0).all()
    assert told.shares[:, -1, 0].std() > 0.1, "each replay goes its own way"


def test_the_regret_is_what_was_given_up():
    means = np.array([0.2, 0.5])
    told = replay_thompson(table_of(0.2, 0.5, users=60), means, np.array([60]), replays=5, seed=1)
    assert told.regret[:, 0] == pytest.approx(60 * told.shares[:, 0, 0] * 0.3)


def test_the_first_users_are_served_in_turn():
    told = replay_thompson(
        table_of(0.1, 0.9, users=40), np.array([0.1, 0.9]), np.array([20, 40]), replays=3, seed=0
    )
    assert (told.shares[:, 0] == 0.5).all()


def test_replays_follow_from_the_seed():
    table, means = table_of(0.1, 0.12), np.array([0.1, 0.12])
    one, two, other = (replay_thompson(table, means, LOOKS, replays=10, seed=seed) for seed in (3, 3, 4))
    assert (one.shares == two.shares).all() and (one.shares != other.shares).any()
    assert len({share for share in one.shares[:, -1, 0].tolist()}) > 1


def test_a_draw_is_as_unsure_as_its_policy_is_unknown():
    """With certain rewards there is no spread, and the better policy is served from the first draw on."""
    table = np.tile([0.1, 0.2], (100, 1))
    told = replay_thompson(table, np.array([0.1, 0.2]), np.array([100]), replays=4, seed=0)
    assert told.shares[:, 0, 0] == pytest.approx(np.full(4, 0.1))  # ten users in turn
