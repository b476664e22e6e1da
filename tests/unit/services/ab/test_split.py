"""Arms by hash, and how many users it takes: as many as notice the effect at the rate that was asked for."""

import numpy as np
import pytest
from scipy.stats import binom

from sluice.services.ab.sequences import look_at
from sluice.services.ab.split import (
    assign_arms,
    detectable_effect,
    order_users,
    plan_looks,
    users_needed,
    users_needed_peeking,
)
from tests.unit.services.ab.test_sequences import draw_users

USERS = [f"u{number}" for number in range(3000)]


def test_arms_are_equal_parts_that_follow_from_id_and_seed():
    arms = assign_arms(USERS, 3, 0)
    assert np.bincount(arms).min() > 900 and set(arms) == {0, 1, 2}
    assert assign_arms(USERS[500:510], 3, 0).tolist() == arms[500:510].tolist()
    assert (assign_arms(USERS, 3, 1) == arms).mean() == pytest.approx(1 / 3, abs=0.05)


def test_users_come_in_an_order_that_the_arm_knows_nothing_of():
    order, arms = order_users(USERS, 0), assign_arms(USERS, 2, 0)
    assert sorted(order) == list(range(3000)) and order.tolist() != order_users(USERS, 1).tolist()
    assert arms[order][:1000].mean() == pytest.approx(0.5, abs=0.06)


def test_looks_are_equal_parts():
    assert plan_looks(1000, 4).tolist() == [250, 500, 750, 1000]
    assert plan_looks(10, 3).tolist() == [3, 6, 10]


def test_the_size_is_that_of_the_formula():
    """2 (1.959964 + 0.841621)^2 deviation^2 / (effect mean)^2."""
    needed = users_needed(0.1, 0.08, 0.05, 0.05, 0.8)
    assert needed == pytest.approx(2 * (1.959964 + 0.841621) ** 2 * 0.08**2 / 0.005**2, rel=1e-4)
    assert detectable_effect(0.1, 0.08, needed, 0.05, 0.8) == pytest.approx(0.05, rel=1e-4)
    assert users_needed(0.1, 0.08, 5.0, 0.05, 0.8) == pytest.approx(needed / 100**2)
    assert users_needed_peeking(0.1, 0.08, 0.05, 0.05, 0.8) > 1.5 * needed


@pytest.mark.parametrize("peeking", [False, True])
def test_so_many_users_notice_the_effect_as_often_as_asked(peeking):
    """Clicks of a user are alike; both arms have the same spread, as the size takes it."""
    stream = np.random.default_rng(0)
    seen = draw_users(stream, 1, users=200_000)
    size = (users_needed_peeking if peeking else users_needed)(seen.mean(), seen.std(), 0.1, 0.05, 0.8)
    users = 2 * round(size)
    second = np.arange(users) % 2 == 1
    values = draw_users(stream, 400, users=users) + np.where(second, 0.1 * seen.mean(), 0.0)
    told = look_at(values, second, np.array([users]))
    low, _ = told.interval(0.05) if peeking else told.fixed_interval(0.05)
    noticed = int((low[:, -1] > 0).sum())
    assert binom.ppf(0.001, 400, 0.8) <= noticed <= binom.ppf(0.999, 400, 0.8)
