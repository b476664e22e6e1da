"""Attention over a packed row: histories of several prompts, each followed by branches that share it.

One row holds the tokens of B prompts without any padding,

    [ history_1 | history_2 | ... | history_B | branches of 1 | branches of 2 | ... | branches of B ]

A history token attends to its own history up to itself; a branch token to the whole history of its prompt and
to its own branch up to itself. Two ways compute the same attention, both exact:

- On the CPU: PyTorch's flash kernel once per history (causal) and once for its branches against the same
  keys, no mask at all; the few keys of a token's own branch are a small batched product. The two parts of a
  branch token's softmax are merged by their log-sum-exps, and the kernel's own backward is right for its part
  when it is given the merged output and log-sum-exp (the identity that ring attention, arXiv 2310.01889,
  rests on).
- On other devices, and for attention with dropout: the tokens go into one block per prompt, padded to the
  longest, and scaled_dot_product_attention is called twice for all prompts: histories causally, branches
  under a boolean mask over history and branches. It costs padding and the products between branches, which
  the mask throws away, and saves a GPU the launch of a dozen kernels per prompt and layer.

transformers' attention layers find `attend_row` in their registry under `NAME`.

Dimension suffixes: B prompts, S branches of a prompt, F tokens fed per branch, f some of them, P packed
positions, M queries, H query heads, G key-value heads, E head width, n history tokens of all prompts,
T places for the longest history, R = S * F branch tokens of a prompt, X = T + R keys, C = B * S branches,
Z = 1 + F columns of a branch token's softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sluice.learner.batches.batch import to_device

NAME = "sluice_packed_branches"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """Where one prompt's tokens are: among the queries, and in the row."""

    history_queries: slice
    history: slice
    branch_queries: slice
    branches: slice


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Where everything is in a row of P tokens, and which of them are queries."""

    history_lengths: tuple[int, ...]  # [B] tokens of each prompt's history
    branches: int  # S, of every prompt
    fed: int  # F, tokens fed per branch; a branch's last token is predicted only
    # The queries are only those whose outputs predict a token, M = B + B*S*F: each history's last, and all
    # branches'.
    last_only: bool = False

    @property
    def branch_start(self) -> int:
        """The place of the first branch token: all history tokens."""
        return sum(self.history_lengths)

    @property
    def query_start(self) -> int:
        """The place of the first branch token among the queries."""
        return len(self.history_lengths) if self.last_only else self.branch_start

    @property
    def longest(self) -> int:
        """Tokens of the longest history with a branch behind it."""
        return max(self.history_lengths) + self.fed

    def spans(self) -> Iterator[Span]:
        """Where each prompt's tokens are."""
        start, width = 0, self.branches * self.fed
        query, branch_query, branch = 0, self.query_start, self.branch_start
        for length in self.history_lengths:
            queries = 1 if self.last_only else length
            yield Span(
                slice(query, query + queries),
                slice(start, start + length),
                slice(branch_query, branch_query + width),
                slice(branch, branch + width),
            )
            start, query = start + length, query + queries
            branch_query, branch = branch_query + width, branch + width


def attend_row(
    module: nn.Module,
    query_1HME: torch.Tensor,
    key_1GPE: torch.Tensor,
    value_1GPE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_row: PackedRow,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What attention layers call: M queries of H heads, P keys and values of G, to outputs `[1, M, H, E]`.

    Raises:
        ValueError: the model asks for attention that is not this one.
    """
    if sliding_window is not None and packed_row.longest > sliding_window:
        raise ValueError(
            f"{packed_row.longest} tokens do not fit the model's sliding window of {sliding_window}"
        )
    foreign = sorted(name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None)
    if foreign or attention_mask is not None:
        raise ValueError(f"attention with {', '.join(foreign) or 'a mask'} does not work on a packed row")
    groups = query_1HME.shape[1] // key_1GPE.shape[1]
    if groups > 1:
        key_1GPE, value_1GPE = (part.repeat_interleave(groups, dim=1) for part in (key_1GPE, value_1GPE))
    # Under autocast norms and rotations come back in float32, while the projections, like the values, do not.
    query_1HME, key_1GPE = query_1HME.to(value_1GPE.dtype), key_1GPE.to(value_1GPE.dtype)
    scale = query_1HME.shape[-1] ** -0.5 if scaling is None else scaling
    if query_1HME.device.type == "cpu" and dropout == 0.0 and packed_row.fed > 0:
        return merged_attention(query_1HME, key_1GPE, value_1GPE, packed_row, scale), None
    return masked_attention(query_1HME, key_1GPE, value_1GPE, packed_row, scale, dropout), None


AttentionInterface.register(NAME, attend_row)


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """One block per prompt, all of one size: where the history tokens go, and which keys there are."""

    # T; with the R branch tokens of a prompt a multiple of 8, as the kernels that take masks want it
    longest: int
    place_n: torch.Tensor  # of each history token among the B*T
    real_B11T: torch.Tensor  # bool: there is a history token
    seen_B1RX: torch.Tensor  # bool: which of the X = T + R keys each branch token sees

    def of_histories(self, part_nHE: torch.Tensor) -> torch.Tensor:
        """The history tokens in their blocks, `[B, H, T, E]`, zeros behind each history."""
        blocks = part_nHE.new_zeros(len(self.real_B11T) * self.longest, *part_nHE.shape[1:])
        blocks = blocks.index_copy(0, self.place_n, part_nHE)
        blocks_BTHE: torch.Tensor = blocks.unflatten(0, (-1, self.longest))
        return blocks_BTHE.transpose(1, 2)


@lru_cache(maxsize=4)  # the layers of a forward ask for the same
def _blocks(lengths: tuple[int, ...], branches: int, fed: int, device: torch.device) -> _Blocks:
    width = branches * fed
    longest = max(lengths) + -(max(lengths) + width) % 8
    lengths_B = torch.tensor(lengths)
    at_T = torch.arange(longest)
    place_n = (at_T < lengths_B[:, None]).flatten().nonzero()[:, 0]
    place_n, lengths_B = to_device(place_n, device), to_device(lengths_B, device)
    real_BT = torch.arange(longest, device=device) < lengths_B[:, None]
    branch_R = torch.arange(width, device=device) // max(fed, 1)
    own_RR = (branch_R[:, None] == branch_R[None]).tril()
    seen_BRX = torch.cat(
        [real_BT[:, None].expand(-1, width, -1), own_RR.expand(len(lengths), -1, -1)],
        dim=2,
    )
    return _Blocks(
        longest=longest, place_n=place_n, real_B11T=real_BT[:, None, None], seen_B1RX=seen_BRX[:, None]
    )


def merged_attention(
    query_1HME: torch.Tensor, key_1HPE: torch.Tensor, value_1HPE: torch.Tensor, row: PackedRow, scale: float
) -> torch.Tensor:
    """The attention of a packed row whose branches have tokens, `[1, M, H, E]`: `MergedAttention`."""
    # torch leaves `apply` untyped.
    output_1MHE: torch.Tensor = MergedAttention.apply(  # type: ignore[no-untyped-call]
        query_1HME, key_1HPE, value_1HPE, row, scale
    )
    return output_1MHE


def masked_attention(
    query_1HME: torch.Tensor,
    key_1HPE: torch.Tensor,
    value_1HPE: torch.Tensor,
    row: PackedRow,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """The attention of a packed row, `[1, M, H, E]`, by scaled_dot_product_attention alone."""
    attention = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scale)
    blocks = _blocks(row.history_lengths, row.branches, row.fed, query_1HME.device)
    query_nHE = query_1HME[0, :, : row.query_start].transpose(0, 1)
    key_BHTE, value_BHTE = (
        blocks.of_histories(part[0, :, : row.branch_start].transpose(0, 1)) for part in (key_1HPE, value_1HPE)
    )
    if row.last_only:
        output = attention(query_nHE[:, :, None], key_BHTE, value_BHTE, attn_mask=blocks.real_B11T)[:, :, 0]
    else:
        output_BHTE = attention(blocks.of_histories(query_nHE), key_BHTE, value_BHTE, is_causal=True)
        output = output_BHTE.transpose(1, 2).flatten(0, 1).index_select(0, blocks.place_n)
    if row.fed:
        query_BHRE, own_key_BHRE, own_value_BHRE = (
            part[0, :, start:].unflatten(1, (len(row.history_lengths), -1)).transpose(0, 1)
            for part, start in (
                (query_1HME, row.query_start),
                (key_1HPE, row.branch_start),
                (value_1HPE, row.branch_start),
            )
        )
        key_BHXE = torch.cat([key_BHTE, own_key_BHRE], dim=2)
        value_BHXE = torch.cat([value_BHTE, own_value_BHRE], dim=2)
        output_BHRE = attention(query_BHRE, key_BHXE, value_BHXE, attn_mask=blocks.seen_B1RX)
        output = torch.cat([output, output_BHRE.transpose(1, 2).flatten(0, 1)])
    return output[None]


class MergedAttention(torch.autograd.Function):
    """The attention of a packed row whose branches have tokens, by the CPU's flash kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        query_1HME: torch.Tensor,
        key_1HPE: torch.Tensor,
        value_1HPE: torch.Tensor,
        row: PackedRow,
        scale: float,
    ) -> torch.Tensor:
        """Outputs `[1, M, H, E]`."""
        histories, history_sums, branches, branch_sums = [], [], [], []
        for span in row.spans():
            key, value = key_1HPE[:, :, span.history], value_1HPE[:, :, span.history]
            causal, branch = not row.last_only, query_1HME[:, :, span.branch_queries]
            output, log_sum = _flash(
                query_1HME[:, :, span.history_queries], key, value, 0.0, causal, scale=scale
            )
            histories.append(output)
            history_sums.append(log_sum)
            output, log_sum = _flash(branch, key, value, 0.0, False, scale=scale)
            branches.append(output)
            branch_sums.append(log_sum)
        # The kernel's `[1, H, n, E]` are views of `[1, n, H, E]`, which is what the output projection reads.
        output_1MHE = torch.cat([part.transpose(1, 2) for part in histories + branches], dim=1)

        # Column 0 of the softmax is the whole history, column 1 + lag the branch's token that many places
        # before.
        query_CFHE, output_CFHE = _of_branches(row, row.query_start, query_1HME, output_1MHE.transpose(1, 2))
        key_CFHE, value_CFHE = _of_branches(row, row.branch_start, key_1HPE, value_1HPE)
        history_CFH = torch.cat(branch_sums, dim=2)[0].T.unflatten(0, (-1, row.fed))
        score_ZCFH = history_CFH.new_full((1 + row.fed, *history_CFH.shape), -torch.inf)
        score_ZCFH[0] = history_CFH
        for lag, late, early in _lags(row):
            score_ZCFH[1 + lag, :, late] = (query_CFHE[:, late] * key_CFHE[:, early]).sum(dim=-1).mul_(scale)
        total_CFH = score_ZCFH.logsumexp(dim=0)
        weight_ZCFH1 = score_ZCFH.sub_(total_CFH).exp_().to(value_CFHE.dtype)[..., None]
        output_CFHE.mul_(weight_ZCFH1[0])
        for lag, late, early in _lags(row):
            output_CFHE[:, late].addcmul_(weight_ZCFH1[1 + lag, :, late], value_CFHE[:, early])

        sums_1HM = torch.cat([*history_sums, total_CFH.flatten(0, 1).T[None]], dim=2)
        ctx.save_for_backward(query_1HME, key_1HPE, value_1HPE, output_1MHE, sums_1HM, weight_ZCFH1)
        ctx.row, ctx.scale = row, scale
        return output_1MHE

    @staticmethod
    def backward(ctx: Any, gradient_1MHE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        query, key, value, output_1MHE, sums_1HM, weight_ZCFH1 = ctx.saved_tensors
        row, scale = ctx.row, ctx.scale
        output, gradient = output_1MHE.transpose(1, 2), gradient_1MHE.transpose(1, 2)
        # Laid out as `[1, n, H, E]`, like the projections whose gradients they become.
        d_query, d_key, d_value = (
            torch.empty_like(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value)
        )

        def part(queries: slice, keys: slice, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
            d_query[:, :, queries], d_keys, d_values = _flash_backward(
                gradient[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output[:, :, queries],
                sums_1HM[:, :, queries],
                0.0,
                causal,
                scale=scale,
            )
            return d_keys, d_values

        for span in row.spans():
            from_history = part(span.history_queries, span.history, not row.last_only)
            from_branches = part(span.branch_queries, span.history, False)
            torch.add(from_history[0], from_branches[0], out=d_key[:, :, span.history])
            torch.add(from_history[1], from_branches[1], out=d_value[:, :, span.history])

        query_CFHE, output_CFHE, gradient_CFHE, d_query_CFHE = _of_branches(
            row, row.query_start, query, output, gradient, d_query
        )
        key_CFHE, value_CFHE, d_key_CFHE, d_value_CFHE = _of_branches(
            row, row.branch_start, key, value, d_key, d_value
        )
        inner_CFH = (gradient_CFHE * output_CFHE).sum(dim=-1)
        d_key_CFHE.zero_()
        d_value_CFHE.zero_()
        for lag, late, early in _lags(row):
            weight_CfH1 = weight_ZCFH1[1 + lag, :, late]
            from_value_CfH = (gradient_CFHE[:, late] * value_CFHE[:, early]).sum(dim=-1)
            d_score_CfH1 = (from_value_CfH - inner_CFH[:, late])[..., None] * weight_CfH1 * scale
            d_query_CFHE[:, late].addcmul_(d_score_CfH1, key_CFHE[:, early])
            d_key_CFHE[:, early].addcmul_(d_score_CfH1, query_CFHE[:, late])
            d_value_CFHE[:, early].addcmul_(weight_CfH1, gradient_CFHE[:, late])
        return d_query, d_key, d_value, None, None


def _of_branches(row: PackedRow, start: int, *values_1HPE: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views `[C, F, H, E]` of the branch tokens, from place `start` on; C = B * S branches."""
    return tuple(part[0, :, start:].transpose(0, 1).unflatten(0, (-1, row.fed)) for part in values_1HPE)


def _lags(row: PackedRow) -> Iterator[tuple[int, slice, slice]]:
    """How many places back, which tokens of a branch have one there, and which are there for one of them."""
    return ((lag, slice(lag, row.fed), slice(0, row.fed - lag)) for lag in range(row.fed))
