"""Off-policy estimates: on numbers by hand, on logs whose truth is known, and with the errors of clusters."""

import numpy as np
import pytest
from obp.ope import DoublyRobust, InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting
from scipy.stats import binom

from sluice.services.ab.estimates import DR, IPS, SNIPS, Rounds, estimate_difference, estimate_value

KINDS = (IPS, SNIPS, DR)
BY_HAND = Rounds(
    users=np.array([0, 0, 1, 1]),
    action=np.array([0, 1, 1, 2]),
    reward=np.array([1.0, 0.0, 1.0, 1.0]),
    propensity=np.array([0.5, 0.25, 0.2, 0.5]),
    target=np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]),
    predicted=np.array([[0.6, 0.2, 0.9], [0.6, 0.2, 0.9], [0.4, 0.8, 0.9], [0.4, 0.8, 0.9]]),
)


def test_the_values_are_those_of_the_formulas():
    """Weights 1, 2, 2.5, 0. Models under the target: .4, .4, .6, .6."""
    assert BY_HAND.weights.tolist() == [1.0, 2.0, 2.5, 0.0]
    told = estimate_value(BY_HAND)
    assert told[IPS].value == pytest.approx((1 + 0 + 2.5 + 0) / 4)
    assert told[SNIPS].value == pytest.approx(3.5 / 5.5)
    corrections = [1 * (1 - 0.6), 2 * (0 - 0.2), 2.5 * (1 - 0.8), 0 * (1 - 0.9)]
    assert told[DR].value == pytest.approx((0.4 + 0.4 + 0.6 + 0.6 + sum(corrections)) / 4)
    assert BY_HAND.effective_sample == pytest.approx(5.5**2 / (1 + 4 + 6.25))


def test_the_values_are_those_of_the_open_bandit_pipeline():
    logged = {
        "reward": BY_HAND.reward,
        "action": BY_HAND.action,
        "pscore": BY_HAND.propensity,
        "action_dist": BY_HAND.target[..., None],
        "position": np.zeros(4, dtype=int),
    }
    told = estimate_value(BY_HAND)
    model = {"estimated_rewards_by_reg_model": BY_HAND.predicted[..., None]}
    assert told[IPS].value == pytest.approx(InverseProbabilityWeighting().estimate_policy_value(**logged))
    snips = SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**logged)
    assert told[SNIPS].value == pytest.approx(snips)
    assert told[DR].value == pytest.approx(DoublyRobust().estimate_policy_value(**logged, **model))


def test_the_error_adds_up_a_users_impressions():
    """IPS: 1, 0, 2.5, 0 about .875, so the users' sums are -.75 and .75. SNIPS: w (r - 7/11) / 1.375, with
    -.6612 and .6612. DR: .8, 0, 1.1, .6 about .625, with -.45 and .45.
    """
    assert estimate_value(BY_HAND)[IPS].error == pytest.approx(np.sqrt(2 / 1 * 2 * 0.75**2) / 4)
    assert estimate_value(BY_HAND)[SNIPS].error == pytest.approx(
        np.sqrt(2 / 1 * 2 * 0.661157**2) / 4, rel=1e-5
    )
    assert estimate_value(BY_HAND)[DR].error == pytest.approx(np.sqrt(2 / 1 * 2 * 0.45**2) / 4)
    low, high = estimate_value(BY_HAND)[IPS].interval(0.05)
    assert (high - low) / 2 == pytest.approx(1.959964 * estimate_value(BY_HAND)[IPS].error, rel=1e-5)


def draw_log(stream, users=200, each=8, actions=5):
    """A log of users whose impressions are alike, and what two target policies are truly worth.

    The logger prefers what the user likes, by a propensity that is known. The model of rewards is wrong.
    """
    n = users * each
    owner = np.repeat(np.arange(users), each)
    liking = stream.normal(size=(users, actions)) * 0.8 + np.linspace(-1.5, 0.5, actions)
    chance = 1 / (1 + np.exp(-(liking + stream.normal(size=(users, 1)))))[owner]
    scores = 0.8 * liking[owner]
    logger = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    action = (logger.cumsum(axis=1) > stream.random((n, 1))).argmax(axis=1)
    reward = (stream.random(n) < chance[np.arange(n), action]).astype(float)
    model = np.clip(chance.mean(axis=0) + 0.1, 0, 1)
    rounds, truths = [], []
    for good in ((3, 4), (0, 3)):
        target = np.zeros((n, actions))
        target[:, good] = 0.5
        rounds.append(
            Rounds(
                users=owner,
                action=action,
                reward=reward,
                propensity=logger[np.arange(n), action],
                target=target,
                predicted=np.tile(model, (n, 1)),
            )
        )
        truths.append((target * chance).sum(axis=1).mean())
    return rounds, truths


def true_values(actions=5):
    """Of both targets over many users."""
    _, truths = draw_log(np.random.default_rng(99), users=100_000, each=1, actions=actions)
    return truths


def test_intervals_cover_the_truth_at_their_rate():
    stream, (first, second) = np.random.default_rng(0), true_values()
    logs, level = 200, 0.05
    covered = dict.fromkeys(((kind, what) for kind in KINDS for what in ("value", "difference")), 0)
    for _ in range(logs):
        (one, two), _ = draw_log(stream)
        values, differences = estimate_value(one), estimate_difference(one, two)
        for kind in KINDS:
            low, high = values[kind].interval(level)
            covered[kind, "value"] += low <= first <= high
            low, high = differences[kind].interval(level)
            covered[kind, "difference"] += low <= second - first <= high
    bounds = binom.ppf([0.001, 0.999], logs, 1 - level)
    assert all(bounds[0] <= count <= bounds[1] for count in covered.values()), covered


def test_impressions_taken_for_independent_would_cover_too_seldom():
    stream, (first, _) = np.random.default_rng(1), true_values()
    covered = 0
    for _ in range(200):
        (one, _), _ = draw_log(stream, users=60, each=30)
        alone = Rounds(**{**vars(one), "users": np.arange(len(one.users))})
        low, high = estimate_value(alone)[SNIPS].interval(0.05)
        covered += low <= first <= high
    assert covered < binom.ppf(0.001, 200, 0.95)


def test_a_better_and_a_worse_policy_are_told_and_an_equal_is_not():
    stream = np.random.default_rng(2)
    (one, two), _ = draw_log(stream, users=3000)
    for kind in KINDS:
        worse, better = estimate_difference(one, two)[kind], estimate_difference(two, one)[kind]
        assert worse.interval(0.05)[1] < 0 < better.interval(0.05)[0]
        same = estimate_difference(one, one)[kind]
        assert (same.value, same.error) == (0, 0)
