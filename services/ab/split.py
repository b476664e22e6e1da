"""Who is in which arm, and how many users a test needs."""

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from sluice.services.ab.sequences import best_rho2, sequence_margin


def assign_arms(users: Sequence[str], arms: int, seed: int) -> np.ndarray:
    """The arm of each user id, int64 [U]: a hash of id and seed, so it hangs on nobody else."""
    arm: np.ndarray = np.floor(_hash_shares(users, f"arm/{seed}") * arms).astype(np.int64)
    return arm


def order_users(users: Sequence[str], seed: int) -> np.ndarray:
    """The order in which users come into the test, int64 [U], by another hash."""
    return np.argsort(_hash_shares(users, f"order/{seed}"), kind="stable")


def plan_looks(users: int, looks: int) -> np.ndarray:
    """After how many users a test is looked at, int64 [P]: equal parts, the last look after all of them."""
    return np.unique(np.linspace(users / looks, users, looks).astype(np.int64))


def users_needed(mean: float, deviation: float, effect: float, alpha: float, power: float) -> float:
    """Users in each of two equal arms for one look at the end.

    Args:
        mean: of the users' outcomes, above 0.
        deviation: standard deviation of the users' outcomes: the unit is the user, so what a user's visits
            have in common is in it.
        effect: what is to be noticed, relative to the mean.
        alpha: chance of a difference that is none, two-sided.
        power: chance to notice the effect.
    """
    return 2 * (_quantiles(alpha, power) * deviation / (effect * mean)) ** 2


def users_needed_peeking(mean: float, deviation: float, effect: float, alpha: float, power: float) -> float:
    """The same by the last interval of a confidence sequence that is tightest there."""
    margin = float(
        sequence_margin(np.array([1.0]), best_rho2(1, alpha), alpha)[0]
    )  # the same at any best time
    return 2 * (deviation * (margin + float(norm.ppf(power))) / (effect * mean)) ** 2


def detectable_effect(mean: float, deviation: float, users: float, alpha: float, power: float) -> float:
    """The effect, relative to the mean, that `users` in each of two arms notice with one look."""
    return float(_quantiles(alpha, power) * np.sqrt(2 / users) * deviation / mean)


def _quantiles(alpha: float, power: float) -> float:
    """How many standard errors an effect has to be, 2.8 at alpha .05 and power .8."""
    return float(norm.isf(alpha / 2) + norm.ppf(power))


def _hash_shares(users: Sequence[str], key: str) -> np.ndarray:
    """float64 [U] in [0, 1)."""
    digests = [hashlib.blake2b(f"{key}/{user}".encode(), digest_size=8).digest() for user in users]
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.float64) / 2.0**64
