"""The sides that `sluice bench learner` compares the shared-prefix learner with, and a plain training step.

`RowSide` is an optimizer step of NLL + GRPO with one row per branch, as whoever has no shared-prefix learner
would write it. Its loss is a sum over rows, so it goes through them in micro-batches of a token budget, rows
of like length together. How rows are made and scored is one of two functions:

- `right_padded`: an honest effort. No mask at all, since a causal model never looks at what stands to the
  right; the last token is not fed; the output embedding is applied to the item's positions only.
- `left_padded`: what TRL's GRPOTrainer does. Prompts are left-padded to the longest of the batch, completions
  follow, the 2-D attention mask goes to the model, the logits of the completion come from `logits_to_keep`,
  log-probs are a gather minus a log-sum-exp row by row, and entropies are computed without gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from sluice.learner.batches.batch import GroupBatch


class Rows(NamedTuple):
    """R = B * S rows of one batch, and what their loss needs."""

    history_RT: torch.Tensor
    lengths_R: torch.Tensor
    branch_RL: torch.Tensor
    behaviour_RL: torch.Tensor  # nats; 0 for the ground truth, which does not need it
    advantage_R: torch.Tensor  # NaN: the row is the ground truth


Score = Callable[[PreTrainedModel, Rows, int], tuple[torch.Tensor, torch.Tensor]]


class RowSide:
    """Optimizer steps with one row per branch."""

    def __init__(
        self, model: PreTrainedModel, score: Score, *, lr: float, max_grad_norm: float, tokens: int
    ) -> None:
        """Train `model` in place, with at most `tokens` padded tokens (but at least one row) per forward."""
        self._model, self._score, self._tokens = model.train(), score, tokens
        self._max_grad_norm = max_grad_norm
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    def step(self, batch: GroupBatch) -> float:
        """One step; the loss before it, mean over prompts."""
        rows, loss = _rows(batch), 0.0
        candidates, widest = batch.candidates_BKL.shape[1], int(batch.history_lengths_B.max())
        with self._model.device:
            for chosen in self._parts(rows, widest):
                part = Rows(*(values.to(self._model.device) for values in chosen))
                log_probs_RL, _entropy_RL = self._score(self._model, part, widest)
                part_loss = _loss_per_row(part, log_probs_RL, candidates).sum() / batch.prompts
                part_loss.backward()
                loss += float(part_loss.item())
        nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _parts(self, rows: Rows, widest: int) -> list[Rows]:
        """Micro-batches of rows in order of length."""
        order = rows.lengths_R.argsort(stable=True)
        levels, parts, start = rows.branch_RL.shape[1], [], 0
        lengths = rows.lengths_R[order].tolist()
        for end in range(1, len(lengths) + 1):
            width = widest if self._score is left_padded else lengths[min(end, len(lengths) - 1)]
            if end == len(lengths) or (end + 1 - start) * (width + levels) > self._tokens:
                parts.append(Rows(*(values[order[start:end]] for values in rows)))
                start = end
        return parts


def right_padded(model: PreTrainedModel, rows: Rows, _widest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies `[R, L]`; see the module."""
    levels = rows.branch_RL.shape[1]
    count, width = rows.lengths_R.shape[0], int(rows.lengths_R.max()) + levels - 1
    tokens_RW = rows.history_RT.new_zeros(count, width)
    copied = min(width, rows.history_RT.shape[1])
    tokens_RW[:, :copied] = rows.history_RT[:, :copied]
    places_RL = rows.lengths_R[:, None] + torch.arange(levels)
    tokens_RW.scatter_(1, places_RL[:, :-1], rows.branch_RL[:, :-1])
    hidden_RWD = model.get_decoder()(input_ids=tokens_RW, use_cache=False).last_hidden_state
    hidden_RLD = hidden_RWD[torch.arange(count)[:, None], places_RL - 1]
    log_p_RLV = torch.log_softmax(model.get_output_embeddings()(hidden_RLD), dim=-1)
    with torch.no_grad():
        entropy_RL = -(log_p_RLV.exp() * log_p_RLV).sum(dim=-1)
    return log_p_RLV.gather(-1, rows.branch_RL[..., None])[..., 0], entropy_RL


def left_padded(model: PreTrainedModel, rows: Rows, widest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies `[R, L]`; see the module."""
    levels, count = rows.branch_RL.shape[1], rows.lengths_R.shape[0]
    pads_R1 = (widest - rows.lengths_R)[:, None]
    places_RW = torch.arange(widest).expand(count, -1) - pads_R1
    prompt_RW = rows.history_RT.gather(1, places_RW.clamp(min=0)).masked_fill(places_RW < 0, 0)
    mask_RW = torch.cat([(places_RW >= 0).long(), torch.ones(count, levels, dtype=torch.long)], dim=1)
    logits_RLV = model(
        input_ids=torch.cat([prompt_RW, rows.branch_RL], dim=1),
        attention_mask=mask_RW,
        logits_to_keep=levels + 1,
        use_cache=False,
    ).logits[:, :-1]
    chosen_RL = logits_RLV.gather(-1, rows.branch_RL[..., None])[..., 0]
    log_probs_RL = chosen_RL - torch.stack([torch.logsumexp(logits_LV, dim=-1) for logits_LV in logits_RLV])
    with torch.no_grad():
        log_p_RLV = torch.log_softmax(logits_RLV, dim=-1)
        entropy_RL = -(log_p_RLV.exp() * log_p_RLV).sum(dim=-1)
    return log_probs_RL, entropy_RL


class PlainSide:
    """A plain next-token training step on full rows, with nothing to save: how fast the model trains here at
    best.
    """

    def __init__(self, model: PreTrainedModel, tokens_NW: torch.Tensor, *, lr: float) -> None:
        """Train `model` in place on `tokens_NW`."""
        self._model, self._tokens_NW = model.train(), tokens_NW
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    def step(self) -> float:
        """One step; the loss before it."""
        loss = self._model(input_ids=self._tokens_NW, labels=self._tokens_NW, use_cache=False).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.item())


def _rows(batch: GroupBatch) -> Rows:
    candidates_BK = batch.candidate_scores_BK
    centred_BK = candidates_BK - candidates_BK.mean(dim=-1, keepdim=True)
    advantage_BK = centred_BK / (candidates_BK.std(dim=-1, keepdim=True) + 1e-4)
    branches = advantage_BK.shape[1] + 1
    target_B1L = batch.target_BL[:, None]
    return Rows(
        history_RT=batch.history_BT.repeat_interleave(branches, dim=0),
        lengths_R=batch.history_lengths_B.repeat_interleave(branches),
        branch_RL=torch.cat([target_B1L, batch.candidates_BKL], dim=1).flatten(0, 1),
        behaviour_RL=torch.cat([torch.zeros(target_B1L.shape), batch.behaviour_log_probs_BKL], dim=1).flatten(
            0, 1
        ),
        advantage_R=torch.cat([torch.full((batch.prompts, 1), torch.nan), advantage_BK], dim=1).flatten(),
    )


def _loss_per_row(rows: Rows, log_probs_RL: torch.Tensor, candidates: int) -> torch.Tensor:
    """NLL of a ground truth; a candidate's share of L_GRPO (`learner/objectives/grpo.py`, clip 0.2, no
    KL).
    """
    target_R = rows.advantage_R.isnan()
    ratio_RL = (log_probs_RL - torch.where(target_R[:, None], log_probs_RL.detach(), rows.behaviour_RL)).exp()
    advantage_R1 = rows.advantage_R.nan_to_num(0.0)[:, None]
    surrogate_RL = torch.minimum(ratio_RL * advantage_R1, ratio_RL.clamp(0.8, 1.2) * advantage_R1)
    return torch.where(target_R, -log_probs_RL.sum(dim=-1), -surrogate_RL.mean(dim=-1) / candidates)
