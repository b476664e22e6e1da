"""Log-probs of several short continuations of one history in a single forward.

A prompt's ground truth and K candidates share their history, which is many times longer than they are. A
forward takes one row of all prompts without padding, every history once and behind them the branches,

    [ history_1 | ... | history_B | branch_1[:L-1] of 1 | ... | branch_S[:L-1] of 1 | ... | branch_S[:L-1] of
    B ]

where a branch token attends to its prompt's history and to its own branch up to itself (`branch_attention`),
and has the position it would have if its branch stood alone. The last token of a branch is predicted but
never fed, so a prompt costs T + S*(L-1) tokens, against S*(T+L-1) for one row per branch, and not even all of
the last layer for these (`packed_forward`). Any transformers model that takes its attention from
transformers' registry and honours explicit position ids computes exactly what it would for one row per
branch; `policy.py` checks that of every policy it loads.

The output embedding is applied only where a token is predicted: once at the end of the history, whose
distribution all branches share, and at every branch token.

Dimension suffixes as in `sluice.learner.batches.batch` and `sluice.learner.scoring.branch_attention`, and
D model width, N distributions to look tokens up in, Y distributions over the tokens allowed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from sluice.catalog.decoding import PLAIN_POLICY, Decoding
from sluice.learner.batches.batch import to_device
from sluice.learner.scoring.branch_attention import PackedRow
from sluice.learner.scoring.packed_forward import packed_forward
from sluice.learner.scoring.token_log_probs import token_log_probs

Lengths = Sequence[int] | torch.Tensor


class BranchScores(NamedTuple):
    """What one forward says of the branches of every prompt."""

    # nats under the rollouts' distribution (temperature, allowed tokens); -inf: not allowed
    log_probs_BSL: torch.Tensor
    # nats of branch 0 under the plain policy: temperature 1, whole vocabulary
    target_log_probs_BL: torch.Tensor
    # nats, of the rollouts' distribution before each token; carries no gradient
    entropy_BSL: torch.Tensor
    # of the value head, of the state before each token; None without a head
    values_BSL: torch.Tensor | None = None

    def detach(self) -> "BranchScores":
        """The same numbers without their gradients."""
        return BranchScores(
            self.log_probs_BSL.detach(),
            self.target_log_probs_BL.detach(),
            self.entropy_BSL.detach(),
            None if self.values_BSL is None else self.values_BSL.detach(),
        )


class BranchScorer(nn.Module):
    """`branch_log_probs` as a module: what wraps it (DDP, FSDP) sees the forward, and syncs gradients."""

    def __init__(self, model: PreTrainedModel, value_head: nn.Module | None = None) -> None:
        """Score with `model` and `value_head`, whose parameters become this module's."""
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(
        self,
        history_BT: torch.Tensor,
        history_lengths_B: Lengths,
        branches_BSL: torch.Tensor,
        allowed_BSLV: torch.Tensor | None = None,
        decoding: Decoding = PLAIN_POLICY,
    ) -> BranchScores:
        """See `branch_log_probs`."""
        return branch_log_probs(
            self.model,
            history_BT,
            history_lengths_B,
            branches_BSL,
            allowed_BSLV,
            decoding,
            self.value_head,
        )


def branch_log_probs(
    model: PreTrainedModel,
    history_BT: torch.Tensor,
    history_lengths_B: Lengths,
    branches_BSL: torch.Tensor,
    allowed_BSLV: torch.Tensor | None = None,
    decoding: Decoding = PLAIN_POLICY,
    value_head: nn.Module | None = None,
) -> BranchScores:
    """Score S branches of L tokens per prompt.

    Args:
        model: a causal LM with attention from transformers' registry, whose logits are its output embedding
            of the last hidden state.
        history_BT: token ids, right-padded with any token.
        history_lengths_B: tokens of each history, at least 1. Numbers, or a tensor on the host: the row is
            laid out there, so that the host never waits for the device.
        branches_BSL: token ids of the branches.
        allowed_BSLV: tokens allowed at each step; the log-probs are normalised over them. None: all.
        decoding: of the rollouts; the log-probs are of its distribution.
        value_head: maps hidden states `[..., D]` to values `[..., 1]`.

    Returns:
        The scores. A token that is not allowed has log-prob -inf and no gradient, whatever its row of the
        mask holds.
    """
    prompts, branches, levels = branches_BSL.shape
    hidden_MD = _hidden_states(model, history_BT, history_lengths_B, branches_BSL[:, :, :-1])
    logits_MV = _full_precision(model.get_output_embeddings()(hidden_MD))
    rows_BSL = _predicting_rows(prompts, branches, levels, history_BT.device)
    log_probs_BSL, entropy_BSL = _score(logits_MV, rows_BSL, branches_BSL, allowed_BSLV, decoding)
    if allowed_BSLV is None and decoding.temperature == 1.0:
        target_BL = log_probs_BSL[:, 0]
    else:
        target_rows_BL = rows_BSL[:, 0]
        own_rows_BL = torch.arange(prompts * levels, device=history_BT.device).view(prompts, levels)
        target_BL, _ = _score(
            logits_MV[target_rows_BL.flatten()], own_rows_BL, branches_BSL[:, 0], None, PLAIN_POLICY
        )
    values_BSL = None
    if value_head is not None:
        values_BSL = _full_precision(value_head(hidden_MD))[rows_BSL, 0]
    return BranchScores(log_probs_BSL, target_BL, entropy_BSL, values_BSL)


def _hidden_states(
    model: PreTrainedModel, history_BT: torch.Tensor, history_lengths_B: Lengths, fed_BSF: torch.Tensor
) -> torch.Tensor:
    """What predicts a token, `[M, D]` with M = B + B*S*F.

    That is the last hidden state of each history, then those of the branches.
    """
    prompts, branches, fed = fed_BSF.shape
    lengths_B = torch.as_tensor(history_lengths_B, device="cpu")
    row = PackedRow(history_lengths=tuple(lengths_B.tolist()), branches=branches, fed=fed)
    places_BT = torch.arange(history_BT.shape[1]).expand(prompts, -1)
    real_BT = places_BT < lengths_B[:, None]
    branch_positions_BSF = (lengths_B[:, None, None] + torch.arange(fed)).expand(-1, branches, -1)
    real_n, positions_P = (
        to_device(part, history_BT.device)
        for part in (
            real_BT.flatten().nonzero()[:, 0],
            torch.cat([places_BT[real_BT], branch_positions_BSF.flatten()]),
        )
    )
    tokens_P = torch.cat([history_BT.flatten()[real_n], fed_BSF.flatten()])
    return packed_forward(model, tokens_P, positions_P, row)


def _predicting_rows(prompts: int, branches: int, levels: int, device: torch.device) -> torch.Tensor:
    """Which row of `_hidden_states` predicts each token, `[B, S, L]`; a prompt's first tokens share one."""
    first_BS1 = torch.arange(prompts, device=device)[:, None, None].expand(-1, branches, 1)
    rest_BSF = prompts + torch.arange(prompts * branches * (levels - 1), device=device).view(
        prompts, branches, -1
    )
    return torch.cat([first_BS1, rest_BSF], dim=-1)


def _score(
    logits_NV: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    allowed: torch.Tensor | None,
    decoding: Decoding,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies, in the shape of `tokens`, of tokens under their rows; `allowed` is `[*tokens,
    V]`.
    """
    if decoding.temperature != 1.0:
        logits_NV = logits_NV / decoding.temperature
    if allowed is None:
        log_probs, entropy_N = token_log_probs(logits_NV, rows, tokens)
        return log_probs, entropy_N[rows]
    possible = allowed.gather(-1, tokens[..., None])[..., 0]
    # The lowest finite number, not -inf: a row whose token is not allowed may allow nothing at all, which
    # would be 0/0.
    lowest = torch.finfo(logits_NV.dtype).min
    logits_YV = logits_NV[rows.flatten()].masked_fill(~allowed.flatten(0, -2), lowest)
    own_rows = torch.arange(rows.numel(), device=rows.device).view(rows.shape)
    log_probs, entropy_Y = token_log_probs(logits_YV, own_rows, tokens)
    return torch.where(possible, log_probs, -torch.inf), entropy_Y.view(tokens.shape)


def _full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Half-precision logits as float32: a log-softmax over a vocabulary needs it."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
