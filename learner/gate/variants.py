"""Gates to compare AdaGRPO's with: by chance, and soft. [ours] The paper's is in `sluice.learner.gate.gate`.

By chance: a group is admitted iff a uniform number, a hash of the seed and of all its tokens, is below the
rate. The number depends on nothing else, so all updates on a batch, all micro-batches and a resumed run
agree; a prompt that is rolled out again gets a new one, as the real gate may decide anew.

Soft: with sigma(m) = sigmoid(m / softness), margins m in places, half a place inside each of the hard gate's
bounds,

    gate = difficulty * discriminability
    difficulty = sigma(policy_rank - head - 1/2)
    discriminability = sigma(head + 1/2 - ranker_rank) * sigma(least margin of a distractor - 1/2)

so that it is 1/2 at a bound and becomes the hard gate as softness goes to 0.

Dimension suffixes as in `sluice.learner.batches.batch`, and J distractors of a prompt, X tokens of all its
branches.

Definition: docs/algorithms.md, Gates to compare with.
"""

import torch

from sluice.learner.batches.batch import GroupBatch, to_device

_WORD = 0x7FFFFFFFFFFFFFFF  # torch has no unsigned shift, so words keep 63 bits


def admission_chance(batch: GroupBatch, seed: int) -> torch.Tensor:
    """A uniform number in [0, 1) for each prompt's group, float64 `[B]`, made of its tokens and the seed."""
    places_T = torch.arange(batch.history_BT.shape[1], device=batch.history_BT.device)
    real_BT = places_T < to_device(batch.history_lengths_B, places_T.device)[:, None]
    history_BT = torch.where(real_BT, _mixed(batch.history_BT + (places_T << 32)), 0)
    rest_BX = torch.cat([batch.target_BL, batch.candidates_BKL.flatten(1)], dim=1)
    rest_BX = _mixed(rest_BX + ((1 + torch.arange(rest_BX.shape[1], device=rest_BX.device)) << 48))
    word_B = _mixed(history_BT.sum(dim=1) + rest_BX.sum(dim=1) + _mixed(rest_BX.new_full((), seed)))
    return (word_B >> 10).double() / 2**53


def soft_halves(
    policy_rank_B: torch.Tensor,
    ranker_rank_B: torch.Tensor,
    margins_BJ: torch.Tensor,
    head: int,
    softness: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Difficulty and discriminability `[B]` of the soft gate, float32 in [0, 1].

    Args:
        policy_rank_B: GT's rank by likelihood, from 1.
        ranker_rank_B: GT's rank by ranker score, from 1.
        margins_BJ: as `sluice.learner.gate.gate.distractor_margins` gives them.
        head: tau*K in whole places.
        softness: places over which the gate opens.
    """
    difficulty_B = torch.sigmoid((policy_rank_B - head - 0.5) / softness)
    agrees_B = torch.sigmoid((head + 0.5 - ranker_rank_B) / softness)
    # A prompt without distractors has nothing to fail with.
    least_B = torch.nn.functional.pad(margins_BJ.nan_to_num(nan=torch.inf), (0, 1), value=torch.inf).amin(
        dim=-1
    )
    return difficulty_B, agrees_B * torch.sigmoid((least_B - 0.5) / softness)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on int64, whose products wrap; it keeps 63 bits."""
    words = ((words + 0x1E3779B97F4A7C15) & _WORD).clone()
    words = ((words ^ (words >> 30)) * 0x3F58476D1CE4E5B9) & _WORD
    words = ((words ^ (words >> 27)) * 0x14D049BB133111EB) & _WORD
    return words ^ (words >> 31)
