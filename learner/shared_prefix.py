"""Log-probs of several short continuations of one history in a single forward.

A prompt's ground truth and K candidates share their history, which is many times longer than they are. One row holds

    [ history_1 .. history_T | branch_1[:L-1] | branch_2[:L-1] | ... | branch_S[:L-1] ]

where a branch token attends to the history and to its own branch up to itself, and has the position it would have if
its branch stood alone. The last token of a branch is predicted but never fed. Any transformers model that honours
explicit position ids and a boolean 4-D mask through sdpa computes exactly what it would for one row per branch;
`policy.py` checks that of every policy it loads.

The output embedding is applied only where a token is predicted: once at the end of the history, whose distribution all
branches share, and at every branch token.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel


class BranchScores(NamedTuple):
    """What one forward says of the branches of every prompt."""

    log_probs_BSL: (
        torch.Tensor
    )  # nats under the rollouts' distribution (temperature, allowed tokens); -inf: not allowed
    target_log_probs_BL: torch.Tensor  # nats of branch 0 under the plain policy: temperature 1, whole vocabulary
    entropy_BSL: torch.Tensor  # nats, of the rollouts' distribution before each token; carries no gradient
    values_BSL: torch.Tensor | None = None  # of the value head, of the state before each token; None without a head

    def detach(self) -> "BranchScores":
        """The same numbers without their gradients."""
        return BranchScores(*(None if part is None else part.detach() for part in self))


class BranchScorer(nn.Module):
    """`branch_log_probs` as a module, so that what wraps it (DDP, FSDP) sees the forward and synchronises gradients."""

    def __init__(self, model: PreTrainedModel, value_head: nn.Module | None = None) -> None:
        """Score with `model` and `value_head`, whose parameters become this module's."""
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(
        self,
        history_BT: torch.Tensor,
        history_lengths_B: torch.Tensor,
        branches_BSL: torch.Tensor,
        allowed_BSLV: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> BranchScores:
        """See `branch_log_probs`."""
        return branch_log_probs(
            self.model, history_BT, history_lengths_B, branches_BSL, allowed_BSLV, temperature, self.value_head
        )


def branch_log_probs(
    model: PreTrainedModel,
    history_BT: torch.Tensor,
    history_lengths_B: torch.Tensor,
    branches_BSL: torch.Tensor,
    allowed_BSLV: torch.Tensor | None = None,
    temperature: float = 1.0,
    value_head: nn.Module | None = None,
) -> BranchScores:
    """Score S branches of L tokens per prompt.

    Args:
        model: a causal LM with sdpa attention, whose logits are its output embedding of the last hidden state.
        history_BT: token ids, right-padded with any token.
        history_lengths_B: tokens of each history, at least 1.
        branches_BSL: token ids of the branches.
        allowed_BSLV: tokens allowed at each step; the log-probs are normalised over them. None: all.
        temperature: of the rollouts' distribution.
        value_head: maps hidden states `[..., D]` to values `[..., 1]`.

    Returns:
        The scores. A token that is not allowed has log-prob -inf and no gradient, whatever its row of the mask holds.
    """
    prompts, branches, levels = branches_BSL.shape
    history = history_BT.shape[1]
    hidden_BRD = _hidden_states(model, history_BT, history_lengths_B, branches_BSL[:, :, :-1])
    head = model.get_output_embeddings()
    rows = torch.arange(prompts, device=history_BT.device)
    last_BD = hidden_BRD[rows, history_lengths_B - 1]
    first_BV = _full_precision(head(last_BD))
    rest_BSFV = _full_precision(head(hidden_BRD[:, history:])).view(prompts, branches, levels - 1, first_BV.shape[-1])

    first_tokens_BS, rest_tokens_BSF = branches_BSL[:, :, 0], branches_BSL[:, :, 1:]
    if allowed_BSLV is None:
        first_BS, first_entropy_B = _choose(first_BV, first_tokens_BS, None, temperature)
        first_entropy_BS = first_entropy_B[:, None].expand(-1, branches)
    else:
        first_BS1, first_entropy_BS = _choose(
            first_BV[:, None].expand(-1, branches, -1), first_tokens_BS[..., None], allowed_BSLV[:, :, 0], temperature
        )
        first_BS = first_BS1[..., 0]
    rest_allowed_BSFV = None if allowed_BSLV is None else allowed_BSLV[:, :, 1:]
    rest_BSF1, rest_entropy_BSF = _choose(rest_BSFV, rest_tokens_BSF[..., None], rest_allowed_BSFV, temperature)
    log_probs_BSL = torch.cat([first_BS[..., None], rest_BSF1[..., 0]], dim=-1)
    entropy_BSL = torch.cat([first_entropy_BS[..., None], rest_entropy_BSF], dim=-1)

    if allowed_BSLV is None and temperature == 1.0:
        target_BL = log_probs_BSL[:, 0]
    else:
        target_first_B1, _ = _choose(first_BV, branches_BSL[:, 0, :1], None, 1.0)
        target_rest_BF1, _ = _choose(rest_BSFV[:, 0], rest_tokens_BSF[:, 0, :, None], None, 1.0)
        target_BL = torch.cat([target_first_B1, target_rest_BF1[..., 0]], dim=-1)
    values_BSL = None
    if value_head is not None:
        first_B1 = _full_precision(value_head(last_BD))
        rest_BSF = _full_precision(value_head(hidden_BRD[:, history:])).view(prompts, branches, levels - 1)
        values_BSL = torch.cat([first_B1[:, None].expand(-1, branches, -1), rest_BSF], dim=-1)
    return BranchScores(log_probs_BSL, target_BL, entropy_BSL, values_BSL)


def _hidden_states(
    model: PreTrainedModel, history_BT: torch.Tensor, lengths_B: torch.Tensor, fed_BSF: torch.Tensor
) -> torch.Tensor:
    """Last hidden states of the rows [history | branches], F = L - 1 tokens fed per branch."""
    prompts, branches, fed = fed_BSF.shape
    history, device = history_BT.shape[1], history_BT.device
    within_R = torch.arange(fed, device=device).repeat(branches)
    positions_BR = torch.cat(
        [torch.arange(history, device=device).expand(prompts, -1), lengths_B[:, None] + within_R[None]], dim=1
    )
    output = model.base_model(
        input_ids=torch.cat([history_BT, fed_BSF.reshape(prompts, branches * fed)], dim=1),
        attention_mask=_attention_mask(lengths_B, history, branches, fed),
        position_ids=positions_BR,
        use_cache=False,
    )
    return output.last_hidden_state


def _attention_mask(lengths_B: torch.Tensor, history: int, branches: int, fed: int) -> torch.Tensor:
    """bool `[B, 1, R, R]`, R = T + S*F: what each query (row) may attend to.

    A padded history position still attends to the real ones, since a row that may attend to nothing has no softmax.
    """
    place_R = torch.arange(history + branches * fed, device=lengths_B.device)
    in_history_R = place_R < history
    branch_R = torch.where(in_history_R, -1, (place_R - history) // max(fed, 1))
    not_later_RR = place_R[None, :] <= place_R[:, None]
    own_branch_RR = (branch_R[:, None] == branch_R[None, :]) & ~in_history_R[:, None] & not_later_RR
    real_history_BR = in_history_R[None, :] & (place_R[None, :] < lengths_B[:, None])
    history_BRR = real_history_BR[:, None, :] & not_later_RR[None]
    return (history_BRR | own_branch_RR[None])[:, None]


def _choose(
    logits: torch.Tensor, tokens: torch.Tensor, allowed: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs `[..., P]` of P tokens of each distribution, from logits `[..., V]`, and the entropies `[...]`."""
    scaled = logits / temperature
    if allowed is None:
        log_p = torch.log_softmax(scaled, dim=-1)
        chosen = log_p.gather(-1, tokens)
    else:
        possible = allowed.gather(-1, tokens)
        # A row whose token is not allowed may allow nothing at all, which would be 0/0: it is normalised over
        # everything and its result replaced, so that no NaN arises.
        log_p = torch.log_softmax(scaled.masked_fill(~allowed & possible, -torch.inf), dim=-1)
        chosen = torch.where(possible, log_p.gather(-1, tokens), -torch.inf)
    return chosen, torch.special.entr(log_p.detach().exp()).sum(dim=-1)


def _full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Half-precision logits as float32: a log-softmax over a vocabulary needs it."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
