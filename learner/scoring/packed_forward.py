"""One forward of a transformers decoder over a packed row, to the hidden states that predict a token.

The decoder runs as it is, with `branch_attention` in the place of its attention. Of its last layer only a
history's last token and the branch tokens are read: the other history tokens are needed for their keys and
values alone. Where the layer is one of `LLAMA_STYLE`, whose parts are known, it computes just that, with its
own modules; another architecture's last layer computes everything, and the rows that predict nothing are
dropped after it.

Dimension suffixes as in `sluice.learner.scoring.branch_attention`, and D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from sluice.learner.batches.batch import to_device
from sluice.learner.scoring.branch_attention import NAME, PackedRow, attend_row

# Their parts have the same names, so the types below say Llama for all of them.
LLAMA_STYLE = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


def packed_forward(
    model: PreTrainedModel, tokens_P: torch.Tensor, positions_P: torch.Tensor, row: PackedRow
) -> torch.Tensor:
    """Last hidden states `[M, D]` of the M = B + B*S*F tokens that predict one.

    They are the last token of each history, then all tokens of the branches.

    Raises:
        ValueError: the model asks for attention that a packed row does not have, or recomputes activations.
    """
    if torch.is_grad_enabled() and model.training and model.is_gradient_checkpointing:
        raise ValueError(
            "activations recomputed in the backward are not those of a packed row: turn checkpointing off"
        )
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    last: nn.Module | None = (
        layers[-1] if layers is not None and isinstance(layers[-1], LLAMA_STYLE) else None
    )
    with _packed_attention(model), _only_predicting(last):
        output: torch.Tensor = decoder(
            input_ids=tokens_P[None], position_ids=positions_P[None], use_cache=False, packed_row=row
        ).last_hidden_state
    return output[0] if last is not None else output[0, _predicting(row, output.device)]


@contextmanager
def _packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the model's layers find our attention; afterwards the one they had."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def _only_predicting(layer: nn.Module | None) -> Iterator[None]:
    """Within it, the layer's forward (not its hooks, which FSDP relies on) is `_predicting_layer`."""
    if layer is not None:
        layer.forward = partial(_predicting_layer, cast(LlamaDecoderLayer, layer))
    try:
        yield
    finally:
        if layer is not None:
            del layer.forward


def _predicting_layer(
    layer: LlamaDecoderLayer,
    hidden_1PD: torch.Tensor,
    *,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    packed_row: PackedRow,
    **_others: Any,
) -> torch.Tensor:
    """A Llama-style layer: keys and values of all P tokens, all else, `[1, M, D]`, of the M that predict."""
    attention = layer.self_attn
    rows_M = _predicting(packed_row, hidden_1PD.device)
    normed_1PD = layer.input_layernorm(hidden_1PD)
    cos_1PE, sin_1PE = position_embeddings

    def heads(projected: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
        split: torch.Tensor = projected.unflatten(-1, (-1, attention.head_dim))
        normed: torch.Tensor = split if norm is None else norm(split)
        return normed.transpose(1, 2)

    def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = x * cos[:, None] + rotate_half(x) * sin[:, None]
        return turned

    query_1HME = heads(attention.q_proj(normed_1PD[:, rows_M]), getattr(attention, "q_norm", None))
    key_1GPE = heads(attention.k_proj(normed_1PD), getattr(attention, "k_norm", None))
    output_1MHE, _ = attend_row(
        attention,
        rotated(query_1HME, cos_1PE[:, rows_M], sin_1PE[:, rows_M]),
        rotated(key_1GPE, cos_1PE, sin_1PE),
        heads(attention.v_proj(normed_1PD)),
        None,
        packed_row=replace(packed_row, last_only=True),
        scaling=attention.scaling,
        dropout=float(attention.attention_dropout or 0.0) if layer.training else 0.0,
        sliding_window=getattr(attention, "sliding_window", None),
    )
    hidden_1MD: torch.Tensor = hidden_1PD[:, rows_M] + attention.o_proj(output_1MHE.flatten(2))
    fed_forward_1MD: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden_1MD))
    return hidden_1MD + fed_forward_1MD


def _predicting(row: PackedRow, device: torch.device) -> torch.Tensor:
    """The places of the M tokens that predict one."""
    last_B = to_device(torch.tensor(row.history_lengths).cumsum(0) - 1, device)
    branches = (
        torch.arange(row.branches * row.fed * len(row.history_lengths), device=device) + row.branch_start
    )
    return torch.cat([last_B, branches])
