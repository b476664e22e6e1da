"""The gate of AdaGRPO (arXiv 2606.08480): which prompts' reward gradient is let through.

    gate(x) = difficulty(x) * discriminability(x), binary, one value per prompt, detached  [paper]

Difficulty: the ground truth (GT) is not within the policy's top tau*K.  [note]
Discriminability: (a) the ranker places GT within the top tau*K of {GT} + valid distinct candidates, and (b)
every distractor, a candidate of another prompt scored under this one, ranks below the head.  [note]

How the ranks are taken [ours]:
- The rank of x is 1 + the number of distinct others that score strictly higher, so ties share the better
  place. A ranker that scores everything alike therefore passes (a) but fails (b): it is refused.
- Candidates with equal tokens count once. A candidate that equals GT is GT, never its rival.
- A hallucination is a rival for the policy's rank, which asks what the policy prefers, but not for the
  ranker's.
- NaN distractor scores are padding and ignored; a prompt without any distractor has nothing to fail (b) with,
  so it is vacuous.
- tau*K and rho*K are rounded down to whole places. With tau*K below 1 no prompt is discriminable, and every
  prompt is difficult.
- A GT without a finite ranker score is refused: the ranker said nothing of it.

Two other gates are there to compare with (`sluice.learner.gate.variants`): one that admits groups by chance,
and a soft one whose value lies between 0 and 1. A third condition, trust in the ranker for the prompt's user
(`sluice.learner.trust.meter`), goes with these two or alone. [ours]

Dimension suffixes as in `sluice.learner.batches.batch`, and J distractors of a prompt.

Definition: docs/algorithms.md, AdaGRPO, Gate by user.
"""

import math
from dataclasses import dataclass

import torch

from sluice.learner.batches.batch import GroupBatch
from sluice.learner.gate.settings import GateSettings, TrustSettings
from sluice.learner.gate.variants import admission_chance, soft_halves


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The gate of each prompt and everything it was decided on."""

    gate_B: torch.Tensor  # float32, what the prompt's term is multiplied by: 0 or 1 unless the gate is soft
    difficulty_B: torch.Tensor  # bool
    discriminability_B: torch.Tensor  # bool
    ranker_agrees_B: torch.Tensor  # bool, condition (a) of discriminability
    distractors_below_B: torch.Tensor  # bool, condition (b) of discriminability
    policy_rank_B: torch.Tensor  # int64, 1..K+1, GT's rank by likelihood
    ranker_rank_B: torch.Tensor  # int64, 1..K+1, GT's rank by ranker score
    # float32, in [0, 1], NaN: too few logged items; None: the gate does not ask for it
    trust_B: torch.Tensor | None = None
    trust_weight_B: torch.Tensor | None = None  # float32, what trust says: 0 or 1 unless it is graded

    @property
    def admitted_B(self) -> torch.Tensor:
        """bool: the gate is open, a soft one at least half."""
        return self.gate_B >= 0.5


@torch.no_grad()
def compute_gate(batch: GroupBatch, target_log_prob_B: torch.Tensor, settings: GateSettings) -> GateResult:
    """Decide which prompts are admitted.

    One prompt, four candidates of one token. The policy finds the ground truth (token 9) hard, the ranker
    puts it first, and the distractor ranks below the head:

    >>> from sluice.catalog.decoding import Decoding
    >>> batch = GroupBatch(
    ...     history_BT=torch.tensor([[1]]), history_lengths_B=torch.tensor([1]),
    ...     target_BL=torch.tensor([[9]]), target_items_B=torch.tensor([0]),
    ...     candidates_BKL=torch.tensor([[[5], [6], [7], [8]]]),
    ...     candidate_items_BK=torch.tensor([[1, 2, 3, 4]]),
    ...     behaviour_log_probs_BKL=torch.tensor([[[-1.0], [-2.0], [-3.0], [-4.0]]]),
    ...     candidate_scores_BK=torch.tensor([[1.0, 2.0, 3.0, 4.0]]), target_scores_B=torch.tensor([5.0]),
    ...     distractor_scores_BJ=torch.tensor([[0.0]]), allowed_BSLV=None,
    ...     decoding=Decoding(candidates=4),
    ... )
    >>> result = compute_gate(batch, torch.tensor([-2.5]), GateSettings(tau=0.25))
    >>> result.policy_rank_B, result.ranker_rank_B, result.gate_B
    (tensor([3]), tensor([1]), tensor([1.]))

    `target_log_prob_B` is GT's log-prob summed over its tokens, under the distribution that the rollouts were
    drawn from (temperature, allowed tokens); exact beams do not need it, since GT's place is read from the
    beams.
    """
    candidates = batch.candidates_BKL.shape[1]
    head = whole_places(settings.tau, candidates)
    policy_rank_B = policy_rank(batch, target_log_prob_B)
    ranker_rank_B = ranker_rank(batch)
    difficulty_B = policy_rank_B > head
    agrees_B = (ranker_rank_B <= head) & torch.isfinite(batch.target_scores_B)
    margins_BJ = distractor_margins(batch, settings)
    below_B = distractors_below(margins_BJ)
    discriminability_B = agrees_B & below_B
    weight_B = None
    if settings.mode == "random":
        assert settings.random_rate is not None, "the settings demand a rate"
        gate_B = (admission_chance(batch, settings.random_seed) < settings.random_rate).float()
    else:
        halves_B = difficulty_B.float(), discriminability_B.float()
        if settings.mode == "soft":
            halves_B = soft_halves(policy_rank_B, ranker_rank_B, margins_BJ, head, settings.softness)
        if settings.trust is not None:
            assert batch.trust_B is not None, "the ranker actors measure trust where the gate asks for it"
            weight_B = trust_weight(batch.trust_B, settings.trust)
        gate_B = _combine(*halves_B, weight_B, settings)
        if settings.mode == "soft":
            gate_B = torch.where(torch.isfinite(batch.target_scores_B), gate_B, 0.0)
    return GateResult(
        gate_B=gate_B,
        difficulty_B=difficulty_B,
        discriminability_B=discriminability_B,
        ranker_agrees_B=agrees_B,
        distractors_below_B=below_B,
        policy_rank_B=policy_rank_B,
        ranker_rank_B=ranker_rank_B,
        trust_B=None if weight_B is None else batch.trust_B,
        trust_weight_B=weight_B,
    )


def trust_weight(trust_B: torch.Tensor, settings: TrustSettings) -> torch.Tensor:
    """What trust `[B]` lets through of each prompt's term, float32 `[B]` in [0, 1]; NaN stays NaN.

    1 above the cut and 0 at it or below; without a cut (trust - 1/2) / (1/2), at least 0.
    """
    if settings.above is None:
        return (2 * trust_B - 1).clamp(min=0.0)
    return torch.where(trust_B.isnan(), trust_B, (trust_B > settings.above).to(trust_B.dtype))


def _combine(
    difficulty_B: torch.Tensor,
    discriminability_B: torch.Tensor,
    trust_B: torch.Tensor | None,
    settings: GateSettings,
) -> torch.Tensor:
    """The product of the parts that the settings ask for; without a trust, discriminability stands for it."""
    parts_B = {
        "both": difficulty_B * discriminability_B,
        "difficulty": difficulty_B,
        "discriminability": discriminability_B,
        "trust": torch.ones_like(difficulty_B),
    }
    if trust_B is None:
        return parts_B[settings.parts]
    instead = "both" if settings.parts in ("both", "difficulty") else "discriminability"
    return torch.where(trust_B.isnan(), parts_B[instead], parts_B[settings.parts] * trust_B)


def whole_places(fraction: float, candidates: int) -> int:
    """`fraction * K` rounded down to whole places.

    The slack keeps products such as 0.29 * 100 = 28.999999999999996 at their 29.
    """
    return math.floor(fraction * candidates + 1e-6)


def policy_rank(batch: GroupBatch, target_log_prob_B: torch.Tensor) -> torch.Tensor:
    """GT's rank `[B]` among the candidates by likelihood under the behaviour policy.

    Samples, with or without replacement: 1 + number of distinct candidates o != y* with l_b(o) > l(y*). Exact
    beams: GT's place among the beams, K+1 if absent.
    """
    rivals_BK = batch.distinct_BK & ~batch.hit_BK
    likelihood_BK = batch.behaviour_log_probs_BKL.sum(dim=-1)
    if batch.decoding.is_drawn:
        return 1 + (rivals_BK & (likelihood_BK > target_log_prob_B[:, None])).sum(dim=-1)
    own_B = likelihood_BK.masked_fill(~batch.hit_BK, -torch.inf).amax(dim=-1)
    place_B = 1 + (rivals_BK & (likelihood_BK > own_B[:, None])).sum(dim=-1)
    return torch.where(batch.hit_BK.any(dim=-1), place_B, batch.hit_BK.shape[1] + 1)


def ranker_rank(batch: GroupBatch) -> torch.Tensor:
    """GT's rank `[B]` by ranker score among {GT} + valid distinct candidates."""
    return 1 + (_ranker_rivals(batch) & (batch.candidate_scores_BK > batch.target_scores_B[:, None])).sum(
        dim=-1
    )


def distractor_margins(batch: GroupBatch, settings: GateSettings) -> torch.Tensor:
    """By how many places each distractor meets condition (b), float32 `[B, J]`.

    It is 1 or more where the distractor meets it, and NaN at padding. Ranks are in the pool {GT} + valid
    distinct candidates + distractors (X places). `below_head`: a distractor has rank > rho*K.
    `within_bottom`: it is among the last rho*K of the pool.
    """
    places = whole_places(settings.rho, batch.candidates_BKL.shape[1])
    rivals_BK = _ranker_rivals(batch)
    pool_BX = torch.cat(
        [
            batch.target_scores_B[:, None],
            batch.candidate_scores_BK.masked_fill(~rivals_BK, torch.nan),
            batch.distractor_scores_BJ,
        ],
        dim=1,
    )
    present_BJ = ~torch.isnan(batch.distractor_scores_BJ)
    # NaN compares false, so padding and invalid candidates never outrank anything.
    rank_BJ = 1 + (pool_BX[:, None, :] > batch.distractor_scores_BJ[:, :, None]).sum(dim=-1)
    if settings.distractor_rule == "below_head":
        margins_BJ = rank_BJ - places
    else:
        pool_size_B = 1 + rivals_BK.sum(dim=-1) + present_BJ.sum(dim=-1)
        margins_BJ = places - (pool_size_B[:, None] - rank_BJ)
    return margins_BJ.float().masked_fill(~present_BJ, torch.nan)


def distractors_below(margins_BJ: torch.Tensor) -> torch.Tensor:
    """Condition (b), bool `[B]`: every distractor meets it, by its margin."""
    return ((margins_BJ > 0) | margins_BJ.isnan()).all(dim=-1)


def _ranker_rivals(batch: GroupBatch) -> torch.Tensor:
    return batch.distinct_BK & batch.valid_BK & ~batch.hit_BK
