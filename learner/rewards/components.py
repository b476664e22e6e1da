"""The components of a reward, each a pure function of a batch.

`sluice.learner.rewards.settings` names and weighs them:

    r(x, o) = sum over components of weight * value(x, o)

with the ranker's value multiplied by the relevance gate.

Where a component compares candidates of a group, it compares the valid ones (items of the catalogue) [ours];
what the functions return for the others is not used, see `sluice.learner.rewards.rewards`.

- ranker: s(x, o) raw; sigmoid(s); `rank`: the share of the other valid candidates that score lower, ties
  counting half; `zscore`: (s - mean) / (std + 1e-4), ddof 1. [ours: the transforms]
- relevance: GRPO-SR (arXiv 2604.14878) multiplies the preference by a relevance gate [note]. 1 where o shares
  its first tokens with the ground truth, or with any item of the history, else 0. [ours: what counts as
  relevant]
- hit: 1[o = y*], and rank_penalty: ReRe (arXiv 2510.12211), MiniOneRec. The candidate on place k (from 0, by
  likelihood under the behaviour policy) gets -w_k, w_k = (1 / log2(k + 2)) / sum over K places; a hit gets 0
  though it holds its place; the whole group gets 0 when nothing hit. Beams stand in this order already
  [note]; equal candidates of a sampled group share the better place. [ours]
- diversity: 1 - the share of the K - 1 other candidates with the same first tokens, or the same item. [ours]
- popularity: -log(share of the training interactions), at most -log(1e-6) for what was never consumed. [ours]
- logged: the logged reward of the ground truth for a candidate that is it, 0 for other candidates and where
  the logs say nothing. [ours]

Dimension suffixes as in `sluice.learner.batches.batch`, and l the first tokens of an item, at most L; I items
of a history.

Definition: docs/algorithms.md, Rewards.
"""

import torch

from sluice.catalog.errors import DataError
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.rewards.settings import (
    DiversityReward,
    HitReward,
    LoggedReward,
    PopularityReward,
    RankerReward,
    RankPenaltyReward,
    RelevanceReward,
    RewardComponent,
)

STD_FLOOR = 1e-4
RAREST_SHARE = 1e-6


def component_values(batch: GroupBatch, component: RewardComponent) -> torch.Tensor:
    """The component's own value, float `[B, K]`, before its weight.

    Raises:
        DataError: the component needs a field that the batch does not have.
    """
    match component:
        case RankerReward():
            value_BK = ranker_values(batch, component.transform)
        case RelevanceReward():
            value_BK = relevance_values(batch, component.like, component.tokens)
        case HitReward():
            value_BK = batch.hit_BK
        case RankPenaltyReward():
            value_BK = rank_penalty_values(batch)
        case DiversityReward():
            value_BK = diversity_values(batch, component.tokens)
        case PopularityReward():
            value_BK = popularity_values(batch)
        case LoggedReward():
            value_BK = logged_values(batch)
    return value_BK.to(batch.candidate_scores_BK.dtype)


def ranker_values(batch: GroupBatch, transform: str) -> torch.Tensor:
    """The ranker's scores `[B, K]`, transformed. A valid candidate without a score stays NaN."""
    scores_BK, valid_BK = batch.candidate_scores_BK, batch.valid_BK
    if transform == "raw":
        return scores_BK
    if transform == "sigmoid":
        return scores_BK.sigmoid()
    valid_B1 = valid_BK.sum(dim=-1, keepdim=True)
    if transform == "rank":
        present_BK = scores_BK.masked_fill(~valid_BK, torch.nan)  # NaN compares false: no rival
        lower_BK = (present_BK[:, None, :] < scores_BK[:, :, None]).sum(dim=-1)
        ties_BK = (present_BK[:, None, :] == scores_BK[:, :, None]).sum(dim=-1) - 1
        share_BK = (lower_BK + 0.5 * ties_BK) / (valid_B1 - 1).clamp(min=1)
        return torch.where(scores_BK.isnan(), scores_BK, share_BK)
    known_BK = torch.where(valid_BK, scores_BK, 0.0)
    mean_B1 = known_BK.sum(dim=-1, keepdim=True) / valid_B1
    centred_BK = torch.where(valid_BK, scores_BK - mean_B1, 0.0)
    variance_B1 = centred_BK.square().sum(dim=-1, keepdim=True) / (valid_B1 - 1).clamp(min=1)
    return centred_BK / (variance_B1.sqrt() + STD_FLOOR)


def relevance_values(batch: GroupBatch, like: str, tokens: int) -> torch.Tensor:
    """bool `[B, K]`: the candidate's first `tokens` tokens are those of something relevant."""
    head_BKl = batch.candidates_BKL[..., :tokens]
    if like == "target":
        relevant_BIl = batch.target_BL[:, None, :tokens]
    else:
        # Histories are BOS and L tokens per item; padding is no item's token, so it equals nothing.
        levels = batch.target_BL.shape[1]
        items = (batch.history_BT.shape[1] - 1) // levels
        items_BIL = batch.history_BT[:, 1 : 1 + items * levels].unflatten(1, (items, levels))
        relevant_BIl = items_BIL[..., :tokens]
    same_BKI = (head_BKl[:, :, None] == relevant_BIl[:, None]).all(dim=-1)
    return same_BKI.any(dim=-1)


def rank_penalty_values(batch: GroupBatch) -> torch.Tensor:
    """ReRe's ranking reward `[B, K]`: at most 0, and 0 throughout a group without a hit."""
    candidates = batch.candidates_BKL.shape[1]
    likelihood_BK = batch.behaviour_log_probs_BKL.sum(dim=-1)
    # Different candidates of one likelihood stand in their order.
    ahead_BKK = likelihood_BK[:, None, :] > likelihood_BK[:, :, None]
    earlier_KK = torch.ones_like(ahead_BKK[0]).tril(diagonal=-1)
    ahead_BKK = ahead_BKK | (earlier_KK & (likelihood_BK[:, None, :] == likelihood_BK[:, :, None]))
    place_BK = (ahead_BKK & ~batch.same_BKK).sum(dim=-1)
    weights_K = 1 / torch.arange(2, candidates + 2, device=place_BK.device, dtype=torch.float64).log2()
    penalty_BK = -(weights_K / weights_K.sum())[place_BK]
    counts_BK = batch.hit_BK.any(dim=-1, keepdim=True) & ~batch.hit_BK
    return torch.where(counts_BK, penalty_BK, 0.0)


def diversity_values(batch: GroupBatch, tokens: int | None) -> torch.Tensor:
    """1 - the share of the other candidates with the same first `tokens` tokens (None: all), `[B, K]`."""
    head_BKl = batch.candidates_BKL[..., :tokens]
    same_BK = (head_BKl[:, :, None] == head_BKl[:, None]).all(dim=-1).sum(dim=-1) - 1
    return 1 - same_BK / (head_BKl.shape[1] - 1)


def popularity_values(batch: GroupBatch) -> torch.Tensor:
    """-log of each candidate's share of the training interactions, nats `[B, K]`.

    Raises:
        DataError: the batch does not have the shares.
    """
    if batch.candidate_popularity_BK is None:
        raise DataError(
            "the popularity reward needs candidate_popularity, each item's share of the training "
            "interactions, which this batch does not have: remove the component from objective.grpo.rewards"
        )
    return -batch.candidate_popularity_BK.clamp(min=RAREST_SHARE).log()


def logged_values(batch: GroupBatch) -> torch.Tensor:
    """The logged reward for a candidate that is the ground truth, else 0; `[B, K]` in the unit of the log.

    Raises:
        DataError: the batch has no logged rewards.
    """
    if batch.logged_rewards_B is None:
        raise DataError(
            "the logged reward needs logs with a rating, click or dwell column: name it in "
            "data.source.columns, or remove the component from objective.grpo.rewards"
        )
    reward_B1 = batch.logged_rewards_B.nan_to_num(nan=0.0)[:, None]
    return torch.where(batch.hit_BK, reward_B1, 0.0)
