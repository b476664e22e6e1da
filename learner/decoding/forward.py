"""A policy's decoder over packed tokens, with the attention left to the caller.

Tree decoding needs attention that no model has: candidates that read one shared history and their own
ancestors. All else of a decoder works token by token, so P tokens of any number of prompts run through it as
one row without padding, and every layer hands its queries, keys and values to an `Attention`.

Llama and Qwen decoders are run layer by layer from here. That leaves out what nobody reads (the last layer
computes queries and feed-forward for the predicting tokens only) and most of the passes over memory. Every
other architecture runs through transformers with our attention in place of its own, with the same results in
more time. So does a sharded decoder, whose layers are whole only while they are called.

Dimension suffixes: P packed positions, H query heads, G key-value heads, D model width, E head width, F width
of the feed-forward, V vocabulary, Y predicting tokens: those whose last hidden state is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    LlamaRMSNorm,
)

from sluice.catalog.errors import PolicyError
from sluice.learner.kernels.onednn import onednn_linear

# Decoders of Llama style, whose parts have the same names: the types below say Llama for all of them.
_LEAN = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
_ATTENTION = "sluice_tree"


class Attention(Protocol):
    """Attention of one forward; it keeps what later forwards need of the keys and values."""

    def keep(self, layer: int, keys_PGE: torch.Tensor, values_PGE: torch.Tensor) -> None:
        """Take in a layer's keys and values of all P tokens; called before `attend`."""

    def attend(
        self, layer: int, queries_PHE: torch.Tensor, scale: float, predicting_Y: torch.Tensor | None
    ) -> torch.Tensor:
        """What each query reads, `[P, H, E]`; with `predicting_Y` the queries are of these tokens only."""


# (tokens [P], positions [P], attention, predicting tokens [Y] or None: all) -> hidden states [Y, D]
Forward = Callable[[torch.Tensor, torch.Tensor, Attention, torch.Tensor | None], torch.Tensor]


def forward_of(model: PreTrainedModel) -> Forward:
    """The fastest forward for a causal LM. It reads the parameters when it is called, and copies none."""
    decoder: PreTrainedModel = model.get_decoder()
    return _Lean(cast(LlamaModel, decoder)) if _is_lean(decoder) else _General(decoder)


def _is_lean(decoder: PreTrainedModel) -> bool:
    config: Any = decoder.config  # its fields are those of the architecture
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = any(kind != "full_attention" for kind in kinds) or (
        type(decoder).__name__ == "MistralModel" and config.sliding_window is not None
    )
    sharded = any(isinstance(parameter, DTensor) for parameter in decoder.parameters())
    return type(decoder).__name__ in _LEAN and not windowed and not sharded


class _Lean:
    """Llama and Qwen: RMS norm, rotary positions, gated feed-forward."""

    def __init__(self, decoder: LlamaModel) -> None:
        self._decoder = decoder
        self._layers = cast(Sequence[LlamaDecoderLayer], decoder.layers)

    def __call__(
        self,
        tokens_P: torch.Tensor,
        positions_P: torch.Tensor,
        attention: Attention,
        predicting_Y: torch.Tensor | None,
    ) -> torch.Tensor:
        decoder = self._decoder
        x_PD = decoder.embed_tokens(tokens_P)
        angles = _angles(decoder, x_PD, positions_P)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            attn, chosen_Y = layer.self_attn, predicting_Y if index == last else None
            queries_PHE, keys_PGE, values_PGE = self._heads_of(index, layer, x_PD, tokens_P, chosen_Y)
            attention.keep(index, _rotate(keys_PGE, angles), values_PGE)
            if chosen_Y is not None:  # nobody reads the last layer's output at the other tokens
                x_PD, angles = x_PD[chosen_Y], (angles[0][chosen_Y], angles[1][chosen_Y])
            queries_PHE = _rotate(queries_PHE, angles)
            read_PHE = attention.attend(index, queries_PHE, attn.scaling, chosen_Y)
            x_PD = project_tokens(attn.o_proj, read_PHE.flatten(1)).add_(x_PD)
            mlp, normed_PD = layer.mlp, _norm(layer.post_attention_layernorm, x_PD)
            gated_PF = mlp.act_fn(project_tokens(mlp.gate_proj, normed_PD)).mul_(
                project_tokens(mlp.up_proj, normed_PD)
            )
            x_PD = project_tokens(mlp.down_proj, gated_PF).add_(x_PD)
        return _norm(decoder.norm, x_PD)

    def _heads_of(
        self,
        index: int,
        layer: LlamaDecoderLayer,
        x_PD: torch.Tensor,
        tokens_P: torch.Tensor,
        chosen_Y: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, of the chosen tokens, keys and values before positions come in.

        In the first layer they depend on the token alone, so where tokens outnumber the vocabulary they are
        computed once for each of its V tokens.
        """
        attn, vocabulary = layer.self_attn, len(self._decoder.embed_tokens.weight)
        by_token = index == 0 and 2 * vocabulary < len(tokens_P)
        if by_token:
            x_PD = self._decoder.embed_tokens(torch.arange(vocabulary, device=tokens_P.device))
        normed_PD = _norm(layer.input_layernorm, x_PD)
        asking_PD = normed_PD if chosen_Y is None or by_token else normed_PD[chosen_Y]
        heads = (
            _heads(attn, project_tokens(attn.q_proj, asking_PD), "q_norm"),
            _heads(attn, project_tokens(attn.k_proj, normed_PD), "k_norm"),
            project_tokens(attn.v_proj, normed_PD).unflatten(-1, (-1, attn.head_dim)),
        )
        if not by_token:
            return heads
        queries_VHE, keys_VGE, values_VGE = heads
        return (
            queries_VHE.index_select(0, tokens_P if chosen_Y is None else tokens_P[chosen_Y]),
            keys_VGE.index_select(0, tokens_P),
            values_VGE.index_select(0, tokens_P),
        )


def project_tokens(module: nn.Module, x: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
    """`module(x)` without gradients, or some rows of it: outputs `[..., rows]`.

    In float32 on a CPU plain linear layers are computed by oneDNN (`sluice.learner.kernels.onednn`).
    """
    if type(module) is not nn.Linear:  # adapted by peft, for example
        projected: torch.Tensor = module(x)
        return projected[..., rows]
    weight, bias = module.weight[rows], None if module.bias is None else module.bias[rows]
    return onednn_linear(x, weight, bias)


def _norm(norm: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    """transformers' RMS norm; torch, too, computes it in float32 whatever the model's type."""
    if x.dtype in (torch.bfloat16, torch.float16):  # rounded before it is weighted, as transformers does
        return norm.weight * F.rms_norm(x, norm.weight.shape, None, norm.variance_epsilon)
    if x.device.type == "cpu":  # torch takes half as many passes again
        length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1])
        return (x * inverse.add_(norm.variance_epsilon).rsqrt_()).mul_(norm.weight)
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _heads(attn: LlamaAttention, projected: torch.Tensor, norm: str) -> torch.Tensor:
    """Split into heads; Qwen3 norms each head."""
    heads: torch.Tensor = projected.unflatten(-1, (-1, attn.head_dim))
    return _norm(getattr(attn, norm), heads) if hasattr(attn, norm) else heads


def _angles(
    decoder: LlamaModel, x_PD: torch.Tensor, positions_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines, and sines of which the first half is negative, `[P, H, E]`."""
    cos_PE, sin_PE = (part[0] for part in decoder.rotary_emb(x_PD, position_ids=positions_P[None]))
    first, second = sin_PE.chunk(2, dim=-1)
    angles = (cos_PE, torch.cat([-first, second], dim=-1))
    cos_PHE, sin_PHE = (part[:, None].expand(-1, decoder.config.num_attention_heads, -1) for part in angles)
    if x_PD.device.type == "cpu":  # where what is broadcast over heads of 32 is half as fast
        cos_PHE, sin_PHE = cos_PHE.contiguous(), sin_PHE.contiguous()
    return cos_PHE, sin_PHE


def _rotate(x_PHE: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions as transformers lays them out: pairs (e, e + E/2)."""
    cos_PHE, sin_PHE = (part[:, : x_PHE.shape[1]] for part in angles)
    return (x_PHE * cos_PHE).addcmul_(x_PHE.roll(x_PHE.shape[-1] // 2, dims=-1), sin_PHE)


class _General:
    """Any causal LM whose attention goes through transformers' attention interface."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        self._decoder = decoder

    def __call__(
        self,
        tokens_P: torch.Tensor,
        positions_P: torch.Tensor,
        attention: Attention,
        predicting_Y: torch.Tensor | None,
    ) -> torch.Tensor:
        with _attending_through(attention, self._decoder) as attended:
            hidden_PD: torch.Tensor = self._decoder(
                input_ids=tokens_P[None],
                position_ids=positions_P[None],
                # Four dimensions tell transformers that the mask is complete; ours is inside the attention.
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens_P.device),
                use_cache=False,
            ).last_hidden_state[0]
        if sorted(attended) != list(range(self._decoder.config.num_hidden_layers)):
            raise PolicyError(
                f"{type(self._decoder).__name__} does not send every layer's attention through "
                "transformers' attention interface, which tree decoding needs: use a model that does, such "
                "as one of Llama, Qwen, GPT-2 or Phi style"
            )
        return hidden_PD if predicting_Y is None else hidden_PD[predicting_Y]


_running: list[tuple[Attention, list[int]]] = []  # the forward under way, with the layers that have attended


def _dispatch(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_ignored: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature, tensors `[1, heads, P, E]`."""
    if sliding_window is not None or softcap is not None:
        raise PolicyError(
            f"{type(module).__name__} has sliding-window or soft-capped attention, which tree decoding does "
            "not compute: use a model without it"
        )
    attention, attended = _running[-1]
    layer = cast(int, module.layer_idx)
    attended.append(layer)
    attention.keep(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention.attend(layer, query[0].transpose(0, 1), scale, None)[None], None


AttentionInterface.register(_ATTENTION, _dispatch)


@contextmanager
def _attending_through(attention: Attention, decoder: PreTrainedModel) -> Iterator[list[int]]:
    """While the context lasts, the decoder's layers attend through `attention`; gives the layers that did."""
    attended: list[int] = []
    config, before = decoder.config, decoder.config._attn_implementation
    config._attn_implementation = _ATTENTION
    _running.append((attention, attended))
    try:
        yield attended
    finally:
        _running.pop()
        config._attn_implementation = before
