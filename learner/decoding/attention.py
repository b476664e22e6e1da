"""Attention of tree decoding.

Histories read themselves; branches read a shared history and their own ancestors.

`HistoryAttention` serves the one forward of the histories and keeps their keys and values; `BranchAttention`
serves one forward per code level. Both take packed tokens from `sluice.learner.decoding.forward`. A history
is never copied per branch: the queries of all branches of a prompt meet its keys in one matrix product.

Dimension suffixes as in `sluice.learner.decoding.forward`, and B prompts, R rows of histories, T tokens of
the longest, S new tokens of the row with most, U tokens of a block, W branches of a prompt, A ancestors of a
branch including itself, t = T + A keys, Q = H / G query heads per key-value head, X key-value heads of
several rows or prompts, M queries that meet the keys of one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sluice.learner.kernels import onednn
from sluice.learner.kernels.onednn import onednn_matmul

# Rows attend together when the shortest has at least this share of the longest one's tokens. Padding is
# arithmetic, and copies before and behind; calls are what costs on a GPU.
_LIKE_LENGTHS = {"cpu": 1.0, "cuda": 0.8}
_BLOCK = 32  # tokens
_SCORES = 2**20  # numbers of a block's scores at a time, which a processor's cache should hold


def _by_blocks(device: torch.device) -> bool:
    """Whether rows of which nothing is known attend by blocks of tokens.

    torch's flash kernel for CPUs multiplies with MKL, which is slower than blocks with oneDNN.
    """
    return device.type == "cpu" and onednn.onednn_is_exact()


@dataclass(frozen=True, kw_only=True)
class RowGeometry:
    """Rows of histories of which the first `known` tokens have keys and values already.

    First the rows of which nothing is known, then the others; longest first among both.
    """

    known_R: np.ndarray  # int64
    lengths_R: np.ndarray  # int64, known tokens included

    @property
    def longest(self) -> int:
        """T."""
        return int(self.lengths_R.max())

    @property
    def new_R(self) -> np.ndarray:
        """Tokens of each row that the forward computes."""
        new_R: np.ndarray = self.lengths_R - self.known_R
        return new_R

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, position) `[P]` of every new token, row by row."""
        row_P = np.repeat(np.arange(len(self.new_R)), self.new_R)
        start_R = np.cumsum(self.new_R) - self.new_R
        return row_P, np.arange(len(row_P)) - start_R[row_P] + self.known_R[row_P]

    def groups(self, device: torch.device) -> list[slice]:
        """Rows that attend together: of like length, so that padding costs little, or by blocks."""
        fresh, least = int((self.known_R == 0).sum()), _LIKE_LENGTHS[device.type]
        by_blocks = _by_blocks(device)
        cuts = [0]
        for row, length in enumerate(self.lengths_R.tolist()):
            alike = length >= least * self.lengths_R[cuts[-1]] or (row < fresh and by_blocks)
            if row and (row == fresh or not alike):
                cuts.append(row)
        return [slice(low, high) for low, high in zip(cuts, [*cuts[1:], len(self.lengths_R)], strict=True)]


@dataclass(frozen=True, kw_only=True)
class KnownRow:
    """The first tokens of a row, whose keys and values were computed before, as a row of another batch."""

    keys: list[torch.Tensor]  # of each layer, [R', G, T', E]
    values: list[torch.Tensor]
    row: int  # of the R'
    length: int  # tokens of the T'


class _Spread:
    """How packed tokens `[P, heads, E]` and the rows `[R, heads, T, E]` that they make up belong together."""

    def __init__(self, geometry: RowGeometry, device: torch.device) -> None:
        self._geometry, self._device = geometry, device
        self._shape = (len(geometry.lengths_R), geometry.longest)
        self._full = int(geometry.new_R.min()) == geometry.longest
        self._indices: dict[tuple[str, int], torch.Tensor] = {}

    def rows(self, packed_PHE: torch.Tensor) -> torch.Tensor:
        """`[R, heads, T, E]`; where a row has no new token it repeats one of its own."""
        _, heads, size = packed_PHE.shape
        if self._full:
            return packed_PHE.reshape(*self._shape, heads, size).transpose(1, 2)
        rows = packed_PHE.reshape(-1, size).index_select(0, self._index("rows", heads))
        return rows.view(self._shape[0], heads, self._shape[1], size)

    def packed(self, rows_RHTE: torch.Tensor) -> torch.Tensor:
        """`[P, heads, E]`."""
        _, heads, _, size = rows_RHTE.shape
        if self._full:
            return rows_RHTE.transpose(1, 2).reshape(-1, heads, size)
        return rows_RHTE.reshape(-1, size).index_select(0, self._index("packed", heads)).view(-1, heads, size)

    def _index(self, of: str, heads: int) -> torch.Tensor:
        """Which of the packed heads each place of the rows takes, or which of the rows' each packed head."""
        if (of, heads) not in self._indices:
            make = self._taken if of == "rows" else self._places
            self._indices[of, heads] = make(torch.arange(heads, device=self._device)).flatten()
        return self._indices[of, heads]

    def _taken(self, head_H: torch.Tensor) -> torch.Tensor:
        known_R1, new_R1 = self._geometry.known_R[:, None], self._geometry.new_R[:, None]
        before_R1, at_T = np.cumsum(new_R1, axis=0) - new_R1, np.arange(self._shape[1])
        token_RT = torch.from_numpy(before_R1 + np.clip(at_T - known_R1, 0, new_R1 - 1)).to(self._device)
        return token_RT[:, None] * len(head_H) + head_H[:, None]

    def _places(self, head_H: torch.Tensor) -> torch.Tensor:
        row_P, position_P = (torch.from_numpy(part).to(self._device) for part in self._geometry.packed())
        return (row_P[:, None] * len(head_H) + head_H) * self._shape[1] + position_P[:, None]


class _RowGroup:
    """Rows that attend in one call, their new tokens padded to the same number."""

    def __init__(self, geometry: RowGeometry, rows: slice, device: torch.device) -> None:
        new_R, known_R = geometry.new_R[rows], geometry.known_R[rows]
        first = int(geometry.new_R[: rows.start].sum())
        self.rows, self.tokens = rows, slice(first, first + int(new_R.sum()))
        new_tokens = RowGeometry(known_R=np.zeros_like(new_R), lengths_R=new_R)
        self._lengths, width = geometry.lengths_R[rows], new_tokens.longest
        self._longest = int(self._lengths.max())
        self.spread = _Spread(new_tokens, device)
        self._mask_R1ST: torch.Tensor | None = None  # None: causal, nothing is known
        if known_R.any():
            at_S1 = torch.arange(width, device=device)[:, None]
            until_RS1 = torch.from_numpy(known_R).to(device)[:, None, None] + at_S1
            self._mask_R1ST = (torch.arange(self._longest, device=device) <= until_RS1)[:, None]

    def attend(
        self, queries_PHE: torch.Tensor, keys_RGTE: torch.Tensor, values_RGTE: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """What the new tokens of these rows read, `[P, H, E]`."""
        keys, values = (part[self.rows, :, : self._longest] for part in (keys_RGTE, values_RGTE))
        if self._mask_R1ST is None and _by_blocks(queries_PHE.device):
            read_RHSE = _causal_by_blocks(self.spread.rows(queries_PHE), keys, values, self._lengths, scale)
        else:
            heads = queries_PHE.shape[1]
            read_RHSE = F.scaled_dot_product_attention(
                self.spread.rows(queries_PHE),
                _per_query_head(keys, heads),
                _per_query_head(values, heads),
                attn_mask=self._mask_R1ST,
                is_causal=self._mask_R1ST is None,
                scale=scale,
            )
        return self.spread.packed(read_RHSE)


def _causal_by_blocks(
    queries_RHTE: torch.Tensor,
    keys_RGTE: torch.Tensor,
    values_RGTE: torch.Tensor,
    lengths_R: np.ndarray,
    scale: float,
) -> torch.Tensor:
    """Causal attention of rows of `lengths_R` tokens, longest first: `[R, H, T, E]`.

    The queries of a block of tokens meet the keys up to the block's end, in all rows that are so long, in one
    product. Half precision is computed in float32.
    """
    dtype = torch.promote_types(queries_RHTE.dtype, torch.float32)
    groups, longest, size = keys_RGTE.shape[1:]
    queries_XQTE = (queries_RHTE.to(dtype) * scale).unflatten(1, (groups, -1)).flatten(0, 1)
    keys_XTE, values_XTE = (part.to(dtype).flatten(0, 1) for part in (keys_RGTE, values_RGTE))
    per_group = queries_XQTE.shape[1]
    read_XQTE = torch.empty_like(queries_XQTE)
    later_UU = queries_XQTE.new_full((_BLOCK, _BLOCK), -torch.inf).triu_(1)
    together = max(1, _SCORES // (per_group * _BLOCK * longest))  # heads
    scratch = queries_XQTE.new_empty(min(together, len(queries_XQTE)) * per_group * _BLOCK * longest)
    with onednn_matmul():
        for start in range(0, longest, _BLOCK):
            block = slice(start, min(start + _BLOCK, longest))
            heads, width = groups * int((lengths_R > start).sum()), block.stop - start
            for first in range(0, heads, together):
                chunk = slice(first, min(first + together, heads))
                shape = (chunk.stop - first, per_group * width, block.stop)
                scores_XMT = scratch[: math.prod(shape)].view(shape)
                block_XME = queries_XQTE[chunk, :, block].reshape(-1, per_group * width, size)
                torch.bmm(
                    block_XME, keys_XTE[chunk, : block.stop].contiguous().transpose(1, 2), out=scores_XMT
                )
                scores_XMT.unflatten(1, (per_group, width))[..., block] += later_UU[:width, :width]
                torch.softmax(scores_XMT, dim=-1, out=scores_XMT)
                read_XME = torch.bmm(scores_XMT, values_XTE[chunk, : block.stop])
                read_XQTE[chunk, :, block] = read_XME.unflatten(1, (per_group, width))
    return read_XQTE.view(queries_RHTE.shape).to(queries_RHTE.dtype)


class HistoryAttention:
    """Causal attention of new tokens within their rows."""

    def __init__(
        self,
        geometry: RowGeometry,
        known: dict[int, KnownRow],
        predicting: tuple[np.ndarray, np.ndarray],
        device: torch.device,
    ) -> None:
        """Start a forward.

        Args:
            geometry: of the rows.
            known: row -> its first tokens, where they are known.
            predicting: (row, position) `[Y]` of the tokens whose last hidden state is asked for.
            device: of the model.
        """
        self._known = known
        self._groups = [_RowGroup(geometry, rows, device) for rows in geometry.groups(device)]
        alone = len(self._groups) == 1 and not known  # then queries are spread as keys and values are
        self._spread = self._groups[0].spread if alone else _Spread(geometry, device)
        in_order = np.array_equal(predicting[0], np.arange(len(geometry.lengths_R)))
        self._row_Y = (
            None if in_order else torch.from_numpy(predicting[0]).to(device)
        )  # None: one of each row
        past_Y1 = torch.from_numpy(predicting[1]).to(device)[:, None]
        self._mask_Y11T = (torch.arange(geometry.longest, device=device) <= past_Y1)[:, None, None]
        # of each layer, [R, G, T, E]; beyond a row's end something of its own
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def keep(self, layer: int, keys_PGE: torch.Tensor, values_PGE: torch.Tensor) -> None:
        """See `sluice.learner.decoding.forward.Attention`."""
        known = self._known.items()
        self.keys.append(self._rows(keys_PGE, {row: start.keys[layer] for row, start in known}))
        self.values.append(self._rows(values_PGE, {row: start.values[layer] for row, start in known}))

    def attend(
        self, layer: int, queries_PHE: torch.Tensor, scale: float, predicting_Y: torch.Tensor | None
    ) -> torch.Tensor:
        """See `sluice.learner.decoding.forward.Attention`."""
        keys, values = self.keys[layer], self.values[layer]
        if predicting_Y is None:
            read = [group.attend(queries_PHE[group.tokens], keys, values, scale) for group in self._groups]
            return read[0] if len(read) == 1 else torch.cat(read)
        # The predicting tokens' queries over all that stands before them in their rows, themselves included.
        if self._row_Y is not None:
            keys, values = keys[self._row_Y], values[self._row_Y]
        keys, values = (_per_query_head(part, queries_PHE.shape[1]) for part in (keys, values))
        queries_YH1E = queries_PHE[:, :, None]
        return F.scaled_dot_product_attention(
            queries_YH1E, keys, values, attn_mask=self._mask_Y11T, scale=scale
        )[:, :, 0]

    def _rows(self, new_PGE: torch.Tensor, known: dict[int, torch.Tensor]) -> torch.Tensor:
        rows_RGTE = self._spread.rows(new_PGE).contiguous()
        for row, source_RGTE in known.items():
            where = self._known[row]
            rows_RGTE[row, :, : where.length] = source_RGTE[where.row, :, : where.length]
        return rows_RGTE


def _per_query_head(part_RGTE: torch.Tensor, heads: int) -> torch.Tensor:
    groups = part_RGTE.shape[1]
    return part_RGTE if groups == heads else part_RGTE.repeat_interleave(heads // groups, dim=1)


class BranchAttention:
    """Attention of W branches per prompt, kept over the levels of one decoding."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], lengths_B: torch.Tensor) -> None:
        """`keys` and `values` of each layer are the histories', `[B, G, T, E]`, of `lengths_B` tokens."""
        self._keys, self._values = keys, values
        longest = keys[0].shape[2]
        past_B1T = torch.arange(longest, device=lengths_B.device) >= lengths_B[:, None, None]
        self._bias_B11T: torch.Tensor | None = None
        if bool(past_B1T.any()):
            self._bias_B11T = torch.zeros(past_B1T.shape, dtype=keys[0].dtype, device=lengths_B.device)
            self._bias_B11T = self._bias_B11T.masked_fill_(past_B1T, -torch.inf)[:, None]
        self._own: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer, [B*W, A, G, E]
        self._parent_P: torch.Tensor | None = None

    def grow(self, parent_BW: torch.Tensor | None) -> None:
        """Say which branch of the level before each branch of the next forward goes on from.

        None: the next forward is the first.
        """
        self._parent_P = None
        if parent_BW is not None:
            width = self._own[0][0].shape[0] // parent_BW.shape[0]
            first_B1 = torch.arange(parent_BW.shape[0], device=parent_BW.device)[:, None] * width
            self._parent_P = (first_B1 + parent_BW).flatten()

    def keep(self, layer: int, keys_PGE: torch.Tensor, values_PGE: torch.Tensor) -> None:
        """See `sluice.learner.decoding.forward.Attention`."""
        if self._parent_P is None:
            self._own.append((keys_PGE[:, None], values_PGE[:, None]))
            return
        old_keys, old_values = (old.index_select(0, self._parent_P) for old in self._own[layer])
        self._own[layer] = (
            torch.cat([old_keys, keys_PGE[:, None]], dim=1),
            torch.cat([old_values, values_PGE[:, None]], dim=1),
        )

    def attend(
        self, layer: int, queries_PHE: torch.Tensor, scale: float, predicting_Y: torch.Tensor | None
    ) -> torch.Tensor:
        """See `sluice.learner.decoding.forward.Attention`."""
        assert predicting_Y is None, "every branch token predicts"
        keys_BGTE, values_BGTE = self._keys[layer], self._values[layer]
        own_keys_PAGE, own_values_PAGE = self._own[layer]
        (prompts, groups, longest, size), ancestors = keys_BGTE.shape, own_keys_PAGE.shape[1]
        queries_PGQE = (queries_PHE * scale).unflatten(1, (groups, -1))
        queries_BWGQE = queries_PGQE.unflatten(0, (prompts, -1))
        width, per_group = queries_BWGQE.shape[1], queries_BWGQE.shape[3]
        # All queries of a key-value head meet its keys in one product: M = W * Q of them, for each of the
        # X = B * G heads.
        queries_XME = queries_BWGQE.transpose(1, 2).reshape(prompts * groups, width * per_group, size)
        scores_BGMt = queries_PHE.new_empty(prompts, groups, width * per_group, longest + ancestors)
        with onednn_matmul():
            history_XMT = torch.bmm(queries_XME, keys_BGTE.flatten(0, 1).transpose(1, 2))
        history_BGMT = history_XMT.unflatten(0, (prompts, groups))
        if self._bias_B11T is None:
            scores_BGMt[..., :longest] = history_BGMT
        else:
            torch.add(history_BGMT, self._bias_B11T, out=scores_BGMt[..., :longest])
        own_PAGQ = (queries_PGQE[:, None] * own_keys_PAGE[:, :, :, None]).sum(dim=-1)
        own_BGWQA = own_PAGQ.view(prompts, width, ancestors, groups, per_group).permute(0, 3, 1, 4, 2)
        scores_BGMt[..., longest:] = own_BGWQA.flatten(2, 3)
        weights_BGMt = torch.softmax(scores_BGMt.float(), dim=-1).to(scores_BGMt.dtype)
        with onednn_matmul():
            read_XME = torch.bmm(weights_BGMt[..., :longest].flatten(0, 1), values_BGTE.flatten(0, 1))
        read_BGWQE = read_XME.view(prompts, groups, width, per_group, size)
        own_BGWQA = weights_BGMt[..., longest:].unflatten(2, (width, per_group))
        own_PAGQ1 = own_BGWQA.permute(0, 2, 4, 1, 3).reshape(-1, ancestors, groups, per_group, 1)
        read_PGQE: torch.Tensor = (own_PAGQ1 * own_values_PAGE[:, :, :, None]).sum(dim=1)
        read_PGQE += read_BGWQE.transpose(1, 2).flatten(0, 1)
        return read_PGQE.flatten(1, 2)
