"""The learner's batch: one prompt with its ground truth and K candidates per row, as tensors.

Dimension suffixes used throughout `learner/`:
    B prompts, K candidates of a prompt, L tokens of an item, J distractors of a prompt, T history tokens, V
    vocabulary, S = K + 1 branches of a prompt: branch 0 is the ground truth, branches 1..K the candidates.
"""

from dataclasses import dataclass, fields

import torch

from sluice.catalog.decoding import Decoding
from sluice.learner.batches.strata import PopularityCuts


@dataclass(frozen=True, kw_only=True)
class LoggedBatch:
    """What every objective has: the history and the logged next item."""

    history_BT: torch.Tensor  # int64 token ids, right-padded with PAD
    history_lengths_B: torch.Tensor  # int64, tokens incl. BOS; on the host, which lays the packed row out
    target_BL: torch.Tensor  # int64 token ids of the ground truth
    # float32, what the logs say the ground truth was worth (rating, dwell), NaN: nothing; None: the logs have
    # no such column, or the objective does not ask for it.
    logged_rewards_B: torch.Tensor | None = None

    @property
    def prompts(self) -> int:
        """B."""
        return self.target_BL.shape[0]


@dataclass(frozen=True, kw_only=True)
class GroupBatch(LoggedBatch):
    """A logged batch with its rollouts and the ranker's scores."""

    candidates_BKL: torch.Tensor  # int64 token ids
    behaviour_log_probs_BKL: torch.Tensor  # float32 nats, of the distribution drawn from
    candidate_items_BK: torch.Tensor  # int64 item rows, -1: no item of the catalogue
    target_items_B: torch.Tensor  # int64 item rows
    candidate_scores_BK: torch.Tensor  # float32 ranker scores, NaN where candidate_items is -1
    target_scores_B: torch.Tensor  # float32
    distractor_scores_BJ: torch.Tensor  # float32, scored under this prompt's history
    # bool [B, S, L, V]: tokens allowed at each step when decoding was trie-constrained; None when it was
    # free.
    allowed_BSLV: torch.Tensor | None
    decoding: Decoding  # of the rollouts; log-probs on both sides are of its distribution
    # float32 nats, log of each candidate's chance of being in its group, for groups drawn without replacement
    # (stochastic beams); None where candidates are independent samples, or exact beams.
    inclusion_log_probs_BK: torch.Tensor | None = None
    # What only some objectives and rewards ask for; None when the ranker or the data set does not have it.
    candidate_spread_BK: torch.Tensor | None = (
        None  # float32, deviation of the score over the ranker's ensemble
    )
    target_spread_B: torch.Tensor | None = None
    candidate_values_BK: torch.Tensor | None = (
        None  # float32, logged reward that the ranker predicts, NaN: no item
    )
    target_values_B: torch.Tensor | None = None
    candidate_popularity_BK: torch.Tensor | None = (
        None  # float32, share of the training interactions, NaN: no item
    )
    # float32, places that the ranker gave the user's last logged items, in the mean; NaN: too few of them
    trust_B: torch.Tensor | None = None
    popularity_cuts: PopularityCuts | None = None  # of the data set, where it has been asked for them

    @property
    def valid_BK(self) -> torch.Tensor:
        """bool: the candidate is an item of the catalogue."""
        return self.candidate_items_BK >= 0

    @property
    def hit_BK(self) -> torch.Tensor:
        """bool: the candidate is the ground truth."""
        return self.candidate_items_BK == self.target_items_B[:, None]

    @property
    def distinct_BK(self) -> torch.Tensor:
        """bool: no earlier candidate of the prompt has the same tokens."""
        return ~self.same_BKK.tril(diagonal=-1).any(dim=-1)

    @property
    def same_BKK(self) -> torch.Tensor:
        """bool: the two candidates have the same tokens."""
        return (self.candidates_BKL[:, :, None] == self.candidates_BKL[:, None, :]).all(dim=-1)


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; a GPU copies from page-locked memory while the host goes on."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def tensors_of(batch: LoggedBatch) -> dict[str, torch.Tensor]:
    """The tensors of a batch, by field."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
