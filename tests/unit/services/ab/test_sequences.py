"""The interval of a difference holds at every look, and is as wide as its paper says."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from sluice.services.ab.sequences import best_rho2, look_at, sequence_margin
from sluice.services.ab.split import plan_looks

LOOKS = plan_looks(2000, 20)


def draw_users(stream, tests, users=2000, rate=0.1, alike=20.0, impressions=24):
    """Clicks per impression of users whose own rates differ: beta-binomial, float64 [tests, users]."""
    own = stream.beta(rate * alike, (1 - rate) * alike, (tests, users))
    return stream.binomial(impressions, own) / impressions


def outside(interval, value=0.0):
    low, high = interval
    return ((low > value) | (high < value)).any(axis=-1)


def test_the_margin_is_that_of_the_paper():
    """sqrt(2 (t rho^2 + 1) / (t^2 rho^2) log(sqrt(t rho^2 + 1) / alpha)) at t = 100, rho = 0.2, alpha = 0.05,
    here in standard errors, which are 1 / sqrt(t)."""
    of_paper = np.sqrt(2 * (100 * 0.04 + 1) / (100**2 * 0.04) * np.log(np.sqrt(100 * 0.04 + 1) / 0.05))
    assert of_paper == pytest.approx(0.308239, abs=1e-6)
    assert sequence_margin(np.array([100]), 0.04, 0.05)[0] / np.sqrt(100) == pytest.approx(of_paper)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_the_margin_is_smallest_where_it_is_to_be(alpha):
    best = best_rho2(500, alpha)
    at = [sequence_margin(np.array([500.0]), best * factor, alpha)[0] for factor in (0.98, 1.0, 1.02)]
    assert at[1] < at[0] and at[1] < at[2]
    assert at[1] > norm.isf(alpha / 2)


def test_difference_and_error_are_those_of_two_samples():
    stream = np.random.default_rng(0)
    values, second = stream.normal(3.0, 1.0, 400), stream.random(400) < 0.3
    seen = look_at(values, second, np.array([100, 400]))
    for place, count in enumerate((100, 400)):
        one, two = values[:count][second[:count]], values[:count][~second[:count]]
        assert seen.difference[place] == pytest.approx(one.mean() - two.mean())
        error = np.sqrt(one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two))
        assert seen.error[place] == pytest.approx(error)
    low, high = seen.fixed_interval(0.05)
    assert (high - low) / 2 == pytest.approx(1.959964 * seen.error, rel=1e-5)
    assert (seen.removed == 0).all()


def test_a_test_against_itself_seldom_finds_something_however_often_it_is_looked_at():
    stream = np.random.default_rng(1)
    seen = look_at(draw_users(stream, 1000), stream.random((1000, 2000)) < 0.5, LOOKS)
    alarms = outside(seen.interval(0.05)).sum()
    assert alarms <= 50, f"{alarms} of 1,000"
    assert outside(seen.fixed_interval(0.05)).sum() > 150, "peeking matters here"


def test_the_same_holds_with_a_covariate():
    stream = np.random.default_rng(2)
    own = stream.beta(2, 18, (1000, 2000))
    values, before = stream.binomial(24, own) / 24, stream.binomial(200, own).astype(float)
    seen = look_at(values, stream.random(values.shape) < 0.5, LOOKS, before)
    assert outside(seen.interval(0.05)).sum() <= 50
    assert seen.removed[:, -1].mean() == pytest.approx(0.4, abs=0.15)


def test_the_sequence_covers_a_difference_that_there_is():
    stream = np.random.default_rng(3)
    second = stream.random((500, 2000)) < 0.5
    values = np.where(second, draw_users(stream, 500, rate=0.12), draw_users(stream, 500, rate=0.1))
    missed = outside(look_at(values, second, LOOKS).interval(0.05), 0.02).sum()
    assert missed <= binom.ppf(0.999, 500, 0.05)


def test_the_interval_of_one_look_covers_at_its_rate():
    stream = np.random.default_rng(4)
    seen = look_at(draw_users(stream, 1000), stream.random((1000, 2000)) < 0.5, LOOKS)
    low, high = seen.fixed_interval(0.05)
    missed = int(((low[:, -1] > 0) | (high[:, -1] < 0)).sum())
    assert binom.ppf(0.001, 1000, 0.05) <= missed <= binom.ppf(0.999, 1000, 0.05)


def test_a_covariate_takes_away_what_it_explains_and_no_effect():
    stream = np.random.default_rng(5)
    before = stream.normal(size=20_000)
    second = stream.random(20_000) < 0.5
    values = 0.3 * second + 2 * before + stream.normal(size=20_000)
    looks = np.array([20_000])
    plain, adjusted = look_at(values, second, looks), look_at(values, second, looks, before)
    assert adjusted.difference[0] == pytest.approx(0.3, abs=0.05)
    assert adjusted.removed[0] == pytest.approx(0.8, abs=0.02)
    assert adjusted.error[0] == pytest.approx(plain.error[0] * np.sqrt(0.2), rel=0.05)


def test_a_covariate_is_shifted_and_scaled_for_nothing():
    stream = np.random.default_rng(6)
    values, before, second = stream.normal(size=300), stream.normal(size=300), stream.random(300) < 0.5
    looks = np.array([150, 300])
    one, two = look_at(values, second, looks, before), look_at(values, second, looks, 7 - 40 * before)
    assert one.difference == pytest.approx(two.difference) and one.error == pytest.approx(two.error)
    same = look_at(values, second, looks, np.ones(300))
    assert same.difference == pytest.approx(look_at(values, second, looks).difference)
