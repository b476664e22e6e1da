"""What a test says of its arms, from what every user does under every policy: pure, arrays in, JSON out.

The first policy is what the others are compared with. Of a user only the outcome under the policy of the own
arm counts for the test; the rest is for the bandit's replays and the truth, as no shop knows it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sluice.services.ab.bandit import replay_thompson
from sluice.services.ab.plan import Plan
from sluice.services.ab.sequences import Looks, look_at
from sluice.services.ab.serve import Outcomes
from sluice.services.ab.split import (
    assign_arms,
    detectable_effect,
    order_users,
    plan_looks,
    users_needed,
    users_needed_peeking,
)

CLICKS, DWELL = "clicks", "dwell"
BETTER, WORSE, LEVEL = "better", "worse", "level"
_SPLITS = 1000  # of the first policy against itself, to count false alarms
_SPLITS_AT_ONCE = 100  # of which the splits are a multiple
_LEVEL = 95  # percent, of the spread over replays


def describe_test(
    plan: Plan, names: Sequence[str], users: Sequence[str], outcomes: Sequence[Outcomes], before: np.ndarray
) -> dict[str, Any]:
    """Everything that the test and the bandit say.

    Args:
        plan: of the test.
        names: [K] of the policies.
        users: [U] ids, by which users get into arms.
        outcomes: [K].
        before: float [U], the clicks of each user before the test.
    """
    order = order_users(users, plan.seed)
    arms = assign_arms(users, len(names), plan.seed)[order]
    clicks, dwell = (np.stack([getattr(of, name)[order] for of in outcomes]) for name in (CLICKS, DWELL))
    truth = [float(of.expected.mean()) for of in outcomes]
    alpha = plan.alpha / (len(names) - 1)
    tests = [
        {
            "first": names[0],
            "second": names[number],
            **_compare(plan, alpha, {CLICKS: clicks, DWELL: dwell}, arms, number, before[order]),
            "truth": truth[number] - truth[0],
        }
        for number in range(1, len(names))
    ]
    return {
        "plan": asdict(plan),
        "alpha_of_each": alpha,
        "policies": [
            {
                "name": name,
                "users": int((arms == number).sum()),
                "clicks": float(clicks[number][arms == number].mean()),
                "dwell": float(dwell[number][arms == number].mean()),
                "truth": truth[number],
                "truth_liked": float(outcomes[number].liked.mean()),
            }
            for number, name in enumerate(names)
        ],
        "aa": _against_itself(plan, alpha, clicks[0], arms, before[order]),
        "size": _size(plan, alpha, clicks[0], arms),
        "tests": tests,
        "bandit": _bandit(plan, names, outcomes),
    }


def decide(low: np.ndarray, high: np.ndarray) -> tuple[str, int | None]:
    """The verdict of a confidence sequence, [P] each, and the look that first gave it."""
    outside = np.flatnonzero((low > 0) | (high < 0))
    if not len(outside):
        return LEVEL, None
    return (BETTER if low[outside[0]] > 0 else WORSE), int(outside[0])


def false_alarms(
    values: np.ndarray,
    looks: np.ndarray,
    alpha: float,
    covariate: np.ndarray | None,
    *,
    splits: int,
    seed: int,
) -> tuple[float, float]:
    """How often random halves of users differ at some look: by the sequence, and by fixed intervals.

    `values` float [n] are what the users do, whatever their half; they come in another order in each split.
    """
    stream, alarms = np.random.default_rng(seed), np.zeros(2)
    for count in [_SPLITS_AT_ONCE] * (splits // _SPLITS_AT_ONCE):
        order = stream.permuted(np.tile(np.arange(len(values)), (count, 1)), axis=1)
        known = None if covariate is None else covariate[order]
        seen = look_at(values[order], stream.random(order.shape) < 0.5, looks, known)
        for kind, (low, high) in enumerate((seen.interval(alpha), seen.fixed_interval(alpha))):
            alarms[kind] += ((low > 0) | (high < 0)).any(axis=1).sum()
    sequence, fixed = (alarms / splits).tolist()
    return sequence, fixed


def _pair(values: np.ndarray, arms: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the users of two arms, in their order: what they did, who is in the second, which they are.

    `values` is [U], or [K, U] by policy.
    """
    chosen = np.flatnonzero((arms == 0) | (arms == number))
    second = arms[chosen] == number
    of_arm = values if values.ndim == 1 else values[arms, np.arange(len(arms))]
    return of_arm[chosen], second, chosen


def _compare(
    plan: Plan, alpha: float, values: dict[str, np.ndarray], arms: np.ndarray, number: int, before: np.ndarray
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for metric, table in values.items():
        own, second, chosen = _pair(table, arms, number)
        looks = plan_looks(len(own), plan.looks)
        plain, adjusted = look_at(own, second, looks), look_at(own, second, looks, before[chosen])
        shown, mean = adjusted if plan.cuped else plain, float(own[~second].mean())
        told[metric] = {
            **_tell(shown, alpha),
            "relative": float(shown.difference[-1]) / mean if mean else None,
            "removed_by_cuped": float(adjusted.removed[-1]),
        }
    return told


def _tell(seen: Looks, alpha: float) -> dict[str, Any]:
    low, high = seen.interval(alpha)
    fixed_low, fixed_high = seen.fixed_interval(alpha)
    verdict, look = decide(low, high)
    return {
        "verdict": verdict,
        "decided_after": None if look is None else int(seen.users[look]),
        "users": seen.users.tolist(),
        "difference": seen.difference.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "fixed": [float(fixed_low[-1]), float(fixed_high[-1])],
    }


def _against_itself(
    plan: Plan, alpha: float, values: np.ndarray, arms: np.ndarray, before: np.ndarray
) -> dict[str, Any]:
    """The first policy in the first two arms, on the split of the test and on many others."""
    own, second, chosen = _pair(values, arms, 1)
    looks = plan_looks(len(own), plan.looks)
    known = before[chosen] if plan.cuped else None
    seen = look_at(own, second, looks, known)
    sequence, fixed = false_alarms(own, looks, alpha, known, splits=_SPLITS, seed=plan.seed)
    return {
        **_tell(seen, alpha),
        "splits": _SPLITS,
        "false_alarms": sequence,
        "false_alarms_of_fixed_intervals": fixed,
    }


def _size(plan: Plan, alpha: float, values: np.ndarray, arms: np.ndarray) -> dict[str, float | None]:
    """How many users a test needs, by the mean and the spread of the first policy against itself.

    None where that policy has no clicks, to which an effect is relative.
    """
    own, _, _ = _pair(values, arms, 1)
    mean, deviation, here = float(own.mean()), float(own.std(ddof=1)), len(own) / 2
    asked = (plan.effect, alpha, plan.power)
    return {
        "mean": mean,
        "deviation": deviation,
        "users_of_arm": here,
        "needed": users_needed(mean, deviation, *asked) if mean else None,
        "needed_peeking": users_needed_peeking(mean, deviation, *asked) if mean else None,
        "detectable": detectable_effect(mean, deviation, here, alpha, plan.power) if mean else None,
    }


def _bandit(plan: Plan, names: Sequence[str], outcomes: Sequence[Outcomes]) -> dict[str, Any]:
    """The replays, with the regret in clicks: a user's is that per impression, times the impressions."""
    means = np.array([of.expected.mean() for of in outcomes])
    impressions = float(np.mean([of.impressions for of in outcomes]))
    table = np.stack([of.clicks for of in outcomes], axis=1)
    looks = plan_looks(len(table), plan.looks)
    replays = replay_thompson(table, means, looks, replays=plan.replays, seed=plan.seed)
    return {
        "replays": plan.replays,
        "users": looks.tolist(),
        "shares": {name: _spread(replays.shares[:, :, number]) for number, name in enumerate(names)},
        "favourite": dict(zip(names, replays.favourites().tolist(), strict=True)),
        "regret_clicks": _spread(replays.regret * impressions),
        "regret_of_equal_shares": float((means.max() - means).mean() * looks[-1] * impressions),
        "best": names[int(means.argmax())],
    }


def _spread(values: np.ndarray) -> dict[str, list[float]]:
    """Over replays, at each look: the mean and where the middle 95% lie. `values` is [R, P]."""
    low, high = np.percentile(values, [50 - _LEVEL / 2, 50 + _LEVEL / 2], axis=0)
    return {"mean": values.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
