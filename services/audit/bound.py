"""The most that the ranker's reward can add: the start's lists, ordered as the best policy would. All pure.

With reward r and a KL term of strength beta the policy that GRPO strives for is pi(o) exp(r(o) / beta) / Z
(Ziebart 2010; Rafailov et al. 2023, equation 4). Its order of the items of a list needs no training:

    log pi(o) + g * s(o) / spread,    g = spread / beta,    spread = mean over lists of the scores' deviation

The spread makes a grid of g fit any ranker's scale. Of g = 0, the start's own order, and the strengths of the
grid, the best by HR@10, then NDCG@10, is chosen on the half of the users that it is not measured on. [ours]

What stands in no list is out of reach, and training may do worse than this order: it is a bound in the mean.
"""

from dataclasses import dataclass

import numpy as np

from sluice.learner.ranking_metrics import per_user, rank_of
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.lists import ScoredLists

STRENGTHS = (0.0, *(2.0**power for power in range(-4, 8)))  # g; the last is the ranker's order alone
HALVES = 2
METRICS = ("hr@10", "ndcg@10")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What re-ranking adds to the start's lists."""

    start: dict[str, float]  # by metric
    gain: dict[str, Estimate]  # by metric, cross-fitted
    betas: tuple[float, ...]  # one for each half of the users, inf: the start's own order
    curve: tuple[tuple[float, dict[str, Estimate]], ...]  # of each beta of the grid, the gain over everybody


def ranks_by(lists: ScoredLists, strength: float, applies: np.ndarray | None = None) -> np.ndarray:
    """The targets' places int64 `[n]` from 1 in the lists ordered with `strength` g, 0: not in the list.

    `applies`, bool `[n]`, says which lists are ordered anew; the others stay. Ties keep the start's order.

    >>> lists = ScoredLists(users=np.array([0]), targets=np.array([8]), items=np.array([[7, 8]]),
    ...     log_probs=np.array([[-1.0, -1.5]]), scores=np.array([[0.0, 2.0]]))
    >>> ranks_by(lists, 0.0), ranks_by(lists, 1.0)
    (array([2]), array([1]))
    """
    scaled = np.nan_to_num(lists.scores) / spread_of(lists.scores)
    strengths = np.where(np.ones(len(lists), dtype=bool) if applies is None else applies, strength, 0.0)
    values = lists.log_probs + strengths[:, None] * scaled
    order = np.argsort(-values, axis=1, kind="stable")
    return rank_of(lists.targets, np.take_along_axis(lists.items, order, axis=1))


def spread_of(scores: np.ndarray) -> float:
    """The mean over lists of the deviation of the scores `[n, W]`; 1 where no list has any."""
    known = scores[(~np.isnan(scores)).any(axis=1)]
    spread = float(np.nanstd(known, axis=1).mean()) if len(known) else 0.0
    return spread if spread > 0 else 1.0


def halves_of(users: np.ndarray, seed: int = 0) -> np.ndarray:
    """Which half of the users each of the n prompts is in, int64 `[n]` of 0 and 1, by chance."""
    known, owner = np.unique(users, return_inverse=True)
    half: np.ndarray = np.random.default_rng(seed).permutation(len(known))[owner] % HALVES
    return half


def measure_bound(lists: ScoredLists, applies: np.ndarray | None = None, seed: int = 0) -> Bound:
    """The cross-fitted gain over the start's order, with intervals over users.

    `applies`, bool `[n]`: re-rank these prompts alone, as a gate that admits them would.
    """
    start = per_user(ranks_by(lists, 0.0))
    gains = []
    for strength in STRENGTHS:
        now = per_user(ranks_by(lists, strength, applies))
        gains.append({name: now[name] - start[name] for name in METRICS})
    half = halves_of(lists.users, seed)
    gain = {name: np.zeros(len(lists)) for name in METRICS}
    betas = []
    for own in range(HALVES):
        place = _best(gains, half != own)
        betas.append(beta_of(lists, STRENGTHS[place]))
        for name in METRICS:
            gain[name][half == own] = gains[place][name][half == own]
    return Bound(
        start={name: float(start[name].mean()) for name in METRICS},
        gain={name: Estimate.of(values, lists.users) for name, values in gain.items()},
        betas=tuple(betas),
        curve=tuple(
            (
                beta_of(lists, strength),
                {name: Estimate.of(values[name], lists.users) for name in METRICS},
            )
            for strength, values in zip(STRENGTHS, gains, strict=True)
        ),
    )


def beta_of(lists: ScoredLists, strength: float) -> float:
    """The beta that a strength g stands for, in the unit of the ranker's scores; inf for 0."""
    return spread_of(lists.scores) / strength if strength > 0 else float("inf")


def _best(gains: list[dict[str, np.ndarray]], chosen: np.ndarray) -> int:
    """The place of the best strength on the chosen prompts; of equals the weakest."""
    if not chosen.any():
        return 0
    means = [tuple(float(values[name][chosen].mean()) for name in METRICS) for values in gains]
    return max(range(len(means)), key=means.__getitem__)
