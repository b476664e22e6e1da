"""Thompson sampling over policies: users come one by one, and a draw says which policy serves the next.

The reward is a user's outcome, a mean over impressions. Of each policy so far the mean m_k and its standard
error e_k are known. A draw is Normal(m_k, e_k^2), and the policy with the largest one serves. The clicks of a
user are alike, so a Beta of clicks and impressions would be too sure of itself. The spread over users is not.

Many replays run side by side over one table of what every user does under every policy, [U, K]; each has an
order of users and draws of its own.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Replays:
    """What R replays came to with K policies."""

    users: np.ndarray  # int64 [P], users served when it was looked at
    shares: np.ndarray  # float64 [R, P, K], of the users so far
    regret: np.ndarray  # float64 [R, P], sum over the users so far of the best policy's mean less that served

    def favourites(self) -> np.ndarray:
        """Share of the replays in which each policy served most users, float64 [K]."""
        _, _, policies = self.shares.shape
        return np.bincount(self.shares[:, -1].argmax(axis=1), minlength=policies) / len(self.shares)


def replay_thompson(
    outcomes: np.ndarray, means: np.ndarray, looks: np.ndarray, *, replays: int, seed: int, first: int = 10
) -> Replays:
    """Run the sampler `replays` times over all users.

    Args:
        outcomes: float64 [U, K].
        means: float64 [K], what the policies are truly worth, for the regret.
        looks: int64 [P], ascending, after how many users to look.
        replays: R.
        seed: of orders and draws.
        first: users of each policy before the first draw, in turn.
    """
    users, policies = outcomes.shape
    stream = np.random.default_rng(seed)
    orders = stream.permuted(np.tile(np.arange(users), (replays, 1)), axis=1)
    rows = np.arange(replays)
    count, total, squares = (np.zeros((replays, policies)) for _ in range(3))
    counts = []
    for step in range(looks[-1]):
        chosen = np.full(replays, step % policies)
        if step >= first * policies:
            chosen = stream.normal(*_posterior(count, total, squares)).argmax(axis=1)
        reward = outcomes[orders[:, step], chosen]
        count[rows, chosen] += 1
        total[rows, chosen] += reward
        squares[rows, chosen] += reward**2
        if step + 1 in looks:
            counts.append(count.copy())
    pulls = np.stack(counts, axis=1)
    return Replays(users=looks, shares=pulls / looks[:, None], regret=pulls @ (means.max() - means))


def _posterior(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of each policy, [R, K] each; the spread over users is that of all policies."""
    mean = total / count
    within = (squares - count * mean**2).sum(axis=1, keepdims=True)
    spread = within / (count.sum(axis=1, keepdims=True) - count.shape[1])
    return mean, np.sqrt(np.maximum(spread, 0) / count)
