"""Planted truths are told: a better policy, a worse and an equal one, each as what it is."""

import numpy as np
import pytest

from sluice.catalog.errors import ConfigError
from sluice.services.ab.experiment import decide, describe_test, false_alarms
from sluice.services.ab.plan import Plan
from sluice.services.ab.serve import Outcomes
from sluice.services.ab.split import assign_arms, plan_looks
from tests.unit.services.ab.test_sequences import draw_users
from tests.unit.services.ab.test_serve import serve

USERS = [str(user) for user in range(4000)]
PLAN = Plan(visits=3, looks=10, replays=50)


def outcomes_of(rate, seed):
    """Of 4,000 users with 24 impressions each."""
    stream = np.random.default_rng(seed)
    clicks = draw_users(stream, 1, users=4000, rate=rate)[0] if rate else np.zeros(4000)
    flat = np.full(4000, rate)
    return Outcomes(
        clicks=clicks, dwell=30 * clicks, expected=flat, liked=flat, impressions=np.full(4000, 24.0)
    )


def told_of(*rates, plan=PLAN, before=None):
    outcomes = [outcomes_of(rate, seed) for seed, rate in enumerate(rates)]
    names = [f"p{number}" for number in range(len(rates))]
    return describe_test(plan, names, USERS, outcomes, np.zeros(4000) if before is None else before)


@pytest.mark.parametrize(("rate", "verdict"), [(0.13, "better"), (0.07, "worse"), (0.10, "level")])
def test_a_planted_difference_is_called_what_it_is(rate, verdict):
    told = told_of(0.10, rate)
    test = told["tests"][0]
    assert (test["clicks"]["verdict"], test["dwell"]["verdict"]) == (verdict, verdict)
    assert test["truth"] == pytest.approx(rate - 0.10)
    last = test["clicks"]
    assert last["low"][-1] < test["truth"] < last["high"][-1]
    assert last["low"][-1] < last["fixed"][0] < last["difference"][-1] < last["fixed"][1] < last["high"][-1]
    assert (last["decided_after"] is None) == (verdict == "level")
    assert told["aa"]["verdict"] == "level" and told["aa"]["false_alarms"] <= 0.05


def test_each_user_counts_with_the_policy_of_the_own_arm():
    told = told_of(0.10, 0.13)
    arms = assign_arms(USERS, 2, 0)
    for number, (rate, policy) in enumerate(zip((0.10, 0.13), told["policies"], strict=True)):
        mine = outcomes_of(rate, number).clicks[arms == number]
        assert policy["users"] == len(mine) and policy["clicks"] == pytest.approx(mine.mean())
        assert policy["truth"] == pytest.approx(rate)
    first, second = (policy["clicks"] for policy in told["policies"])
    assert told["tests"][0]["clicks"]["difference"][-1] == pytest.approx(second - first)
    assert told["tests"][0]["clicks"]["relative"] == pytest.approx(second / first - 1)


def test_all_are_compared_with_the_first_at_a_share_of_alpha():
    told = told_of(0.10, 0.14, 0.06, 0.10)
    assert [test["clicks"]["verdict"] for test in told["tests"]] == ["better", "worse", "level"]
    assert [test["second"] for test in told["tests"]] == ["p1", "p2", "p3"]
    assert told["alpha_of_each"] == pytest.approx(0.05 / 3)
    assert told["bandit"]["best"] == "p1" and told["bandit"]["favourite"]["p1"] > 0.8
    last = [shares["mean"][-1] for shares in told["bandit"]["shares"].values()]
    assert sum(last) == pytest.approx(1) and max(last) == last[1]
    assert told["bandit"]["regret_of_equal_shares"] == pytest.approx((0.04 + 0.08 + 0.04) / 4 * 4000 * 24)
    assert told["bandit"]["regret_clicks"]["mean"][-1] < told["bandit"]["regret_of_equal_shares"] / 2


def test_cuped_is_told_always_and_used_when_asked():
    own = outcomes_of(0.10, 0).clicks
    plain = told_of(0.10, 0.10, before=own * 100)
    used = told_of(0.10, 0.10, before=own * 100, plan=Plan(looks=10, replays=5, cuped=True))
    clicks, other = (told["tests"][0]["clicks"] for told in (plain, used))
    assert clicks["removed_by_cuped"] == other["removed_by_cuped"] > 0.1
    assert clicks["difference"] != other["difference"]
    for of in (clicks, other):
        assert of["relative"] == pytest.approx(of["difference"][-1] / plain["policies"][0]["clicks"])
    widths = [of["high"][-1] - of["low"][-1] for of in (clicks, other)]
    assert widths[1] == pytest.approx(widths[0] * np.sqrt(1 - clicks["removed_by_cuped"]))


def test_the_size_is_of_the_first_policy_against_itself():
    told = told_of(0.10, 0.13)
    own = outcomes_of(0.10, 0).clicks
    assert told["size"]["mean"] == pytest.approx(own.mean())
    assert told["size"]["deviation"] == pytest.approx(own.std(ddof=1))
    assert told["size"]["users_of_arm"] == 2000
    assert told["size"]["needed"] < told["size"]["needed_peeking"]


def test_what_is_relative_to_no_clicks_is_not_known():
    silent, other = outcomes_of(0.0, 0), outcomes_of(0.10, 1)
    told = describe_test(PLAN, ["p0", "p1"], USERS, [silent, other], np.zeros(4000))
    for name in ("needed", "needed_peeking", "detectable"):
        assert told["size"][name] is None
    assert told["tests"][0]["clicks"]["relative"] is told["tests"][0]["dwell"]["relative"] is None
    assert told["tests"][0]["clicks"]["verdict"] == "better"


def test_the_first_look_outside_decides():
    nan = np.array
    assert decide(nan([-1.0, 0.1, -0.2]), nan([1.0, 0.3, 0.2])) == ("better", 1)
    assert decide(nan([-1.0, -0.3, 0.2]), nan([1.0, -0.1, 0.4])) == ("worse", 1)
    assert decide(nan([-1.0, -0.3]), nan([1.0, 0.1])) == ("level", None)


def test_false_alarms_are_counted_over_other_splits():
    values = outcomes_of(0.10, 0).clicks
    sequence, fixed = false_alarms(values, plan_looks(4000, 20), 0.05, None, splits=400, seed=0)
    assert sequence <= 0.05 < fixed
    assert false_alarms(np.zeros(400), plan_looks(400, 4), 0.05, None, splits=100, seed=0) == (0, 0)


def test_in_a_world_better_equal_and_worse_slates_are_told(shop, planted):
    users, plan = np.arange(400), Plan(looks=4, replays=50)
    ids = [shop.dataset.user_ids[user] for user in users.tolist()]
    makers = [planted(0, seed=1), planted(1), planted(0, seed=2), planted(-1)]
    names = ["any", "best", "any-else", "worst"]
    outcomes = [serve(shop, maker, users, visits=4) for maker in makers]
    verdicts = {}
    for number in (1, 2, 3):
        pair = [outcomes[0], outcomes[number]]
        told = describe_test(plan, [names[0], names[number]], ids, pair, np.zeros(400))
        verdicts[names[number]] = told["tests"][0]["clicks"]["verdict"]
        assert told["aa"]["verdict"] == "level"
    assert verdicts == {"best": "better", "any-else": "level", "worst": "worse"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"looks": 0}, "--looks is 0"),
        ({"log_days": 0}, "--log-days is 0"),
        ({"alpha": 0.0}, "0 < alpha < power < 1"),
        ({"power": 1.0}, "0 < alpha < power < 1"),
        ({"effect": 0.0}, "effect above 0"),
        ({"effect": float("nan")}, "effect above 0"),
        ({"effect": float("inf")}, "effect above 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"looks": 40}, "1000 users are too few for 40 looks at 2 arms, which need 1600"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes, message):
    Plan().check(1000, 2)
    with pytest.raises(ConfigError, match=message):
        Plan(**changes).check(1000, 2)
