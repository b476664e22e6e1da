"""Attention of tree decoding: histories read themselves, branches read a shared history and their own ancestors.

`HistoryAttention` serves the one forward of the histories and keeps their keys and values; `BranchAttention` serves one
forward per code level. Both take packed tokens from `learner.tree_forward`. A history is never copied per branch: the
queries of all branches of a prompt meet its keys in one matrix product.

Dimension suffixes as in `learner.tree_forward`, and B prompts, R rows of histories, T tokens of the longest, W branches
of a prompt, A ancestors of a branch including itself, Q = H / G query heads per key-value head.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# Rows attend together when the shortest has at least this share of the longest one's tokens. Padding is arithmetic, and
# copies before and behind; calls are what costs on a GPU.
_LIKE_LENGTHS = {"cpu": 1.0, "cuda": 0.8}


@dataclass(frozen=True, kw_only=True)
class RowGeometry:
    """Rows of histories of which the first `known` tokens have keys and values already. Longest row first."""

    known_R: np.ndarray  # int64
    lengths_R: np.ndarray  # int64, known tokens included

    @property
    def longest(self) -> int:
        """T."""
        return int(self.lengths_R[0])

    @property
    def new_R(self) -> np.ndarray:
        """Tokens of each row that the forward computes."""
        return self.lengths_R - self.known_R

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, position) `[N]` of every new token, row by row."""
        row_N = np.repeat(np.arange(len(self.new_R)), self.new_R)
        start_R = np.cumsum(self.new_R) - self.new_R
        return row_N, np.arange(len(row_N)) - start_R[row_N] + self.known_R[row_N]

    def groups(self, device: torch.device) -> list[slice]:
        """Rows that attend together: of like length, so that padding costs little."""
        least = _LIKE_LENGTHS[device.type]
        cuts = [0]
        for row, length in enumerate(self.lengths_R.tolist()):
            if length < least * self.lengths_R[cuts[-1]]:
                cuts.append(row)
        return [slice(low, high) for low, high in zip(cuts, [*cuts[1:], len(self.lengths_R)], strict=True)]


@dataclass(frozen=True, kw_only=True)
class KnownRow:
    """The first tokens of a row, computed before: keys and values of each layer `[R', T', G, E]`, and where in them."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    row: int
    length: int  # tokens


class _Together:
    """Rows that attend in one call, their new tokens padded to the same number."""

    def __init__(self, geometry: RowGeometry, rows: slice, device: torch.device) -> None:
        new_R, known_R = geometry.new_R[rows], geometry.known_R[rows]
        first = int(geometry.new_R[: rows.start].sum())
        self.rows, self.tokens = rows, slice(first, first + int(new_R.sum()))
        self.count, self.width, self.longest = len(new_R), int(new_R.max()), int(geometry.lengths_R[rows.start])
        self._place_N: torch.Tensor | None = None  # of each new token in the padded block; None: there is no padding
        if new_R.min() < self.width:
            row_N, position_N = RowGeometry(known_R=0 * new_R, lengths_R=new_R).packed()
            self._place_N = torch.from_numpy(row_N * self.width + position_N).to(device)
        self._mask_R1ST: torch.Tensor | None = None  # None: causal, nothing is known
        if known_R.any():
            at_S1 = torch.arange(self.width, device=device)[:, None]
            until_RS1 = torch.from_numpy(known_R).to(device)[:, None, None] + at_S1
            self._mask_R1ST = (torch.arange(self.longest, device=device) <= until_RS1)[:, None]

    def attend(
        self, queries_NHE: torch.Tensor, keys_RTGE: torch.Tensor, values_RTGE: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """What the new tokens of these rows read, `[N, H, E]`."""
        _, heads, size = queries_NHE.shape
        padded = queries_NHE
        if self._place_N is not None:
            padded = queries_NHE.new_zeros(self.count * self.width, heads, size)
            padded.index_copy_(0, self._place_N, queries_NHE)
        queries_RHSE = padded.reshape(self.count, self.width, heads, size).transpose(1, 2)
        keys, values = (
            _per_query_head(part[self.rows, : self.longest].transpose(1, 2), heads) for part in (keys_RTGE, values_RTGE)
        )
        out_RHSE = F.scaled_dot_product_attention(
            queries_RHSE, keys, values, attn_mask=self._mask_R1ST, is_causal=self._mask_R1ST is None, scale=scale
        )
        out = out_RHSE.transpose(1, 2).reshape(-1, heads, size)
        return out if self._place_N is None else out.index_select(0, self._place_N)


class HistoryAttention:
    """Causal attention of new tokens within their rows."""

    def __init__(
        self,
        geometry: RowGeometry,
        known: dict[int, KnownRow],
        wanted: tuple[np.ndarray, np.ndarray],
        device: torch.device,
    ) -> None:
        """Start a forward.

        Args:
            geometry: of the rows.
            known: row -> its first tokens, where they are known.
            wanted: (row, position) `[P]` of the tokens whose last hidden state is wanted.
            device: of the model.
        """
        self._known, self._shape = known, (len(geometry.lengths_R), geometry.longest)
        self._groups = [_Together(geometry, rows, device) for rows in geometry.groups(device)]
        self._slot_N: torch.Tensor | None = None  # None: new tokens are all there is to the rows
        if known or geometry.lengths_R.min() < geometry.longest:
            row_N, position_N = geometry.packed()
            self._slot_N = torch.from_numpy(row_N * geometry.longest + position_N).to(device)
        self._row_P = torch.from_numpy(wanted[0]).to(device)
        past_P1 = torch.from_numpy(wanted[1]).to(device)[:, None]
        self._mask_P11T = (torch.arange(geometry.longest, device=device) <= past_P1)[:, None, None]
        self.keys: list[torch.Tensor] = []  # of each layer, [R, T, G, E], zero beyond a row's end
        self.values: list[torch.Tensor] = []

    def keep(self, layer: int, keys_NGE: torch.Tensor, values_NGE: torch.Tensor) -> None:
        """See `tree_forward.Attention`."""
        self.keys.append(self._rows(keys_NGE, {row: one.keys[layer] for row, one in self._known.items()}))
        self.values.append(self._rows(values_NGE, {row: one.values[layer] for row, one in self._known.items()}))

    def attend(
        self, layer: int, queries_NHE: torch.Tensor, scale: float, wanted_P: torch.Tensor | None
    ) -> torch.Tensor:
        """See `tree_forward.Attention`."""
        keys, values = self.keys[layer], self.values[layer]
        if wanted_P is None:
            read = [group.attend(queries_NHE[group.tokens], keys, values, scale) for group in self._groups]
            return read[0] if len(read) == 1 else torch.cat(read)
        # The wanted tokens' queries over all that stands before them in their rows, themselves included.
        keys, values = (
            _per_query_head(part[self._row_P].transpose(1, 2), queries_NHE.shape[1]) for part in (keys, values)
        )
        queries_PH1E = queries_NHE[:, :, None]
        return F.scaled_dot_product_attention(queries_PH1E, keys, values, attn_mask=self._mask_P11T, scale=scale)[
            :, :, 0
        ]

    def _rows(self, new_NGE: torch.Tensor, known: dict[int, torch.Tensor]) -> torch.Tensor:
        if self._slot_N is None:
            return new_NGE.reshape(*self._shape, *new_NGE.shape[1:])
        rows = new_NGE.new_zeros(*self._shape, *new_NGE.shape[1:])
        rows.flatten(0, 1).index_copy_(0, self._slot_N, new_NGE)
        for row, source_RTGE in known.items():
            where = self._known[row]
            rows[row, : where.length] = source_RTGE[where.row, : where.length]
        return rows


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
        self._parent_N: torch.Tensor | None = None

    def grow(self, parent_BW: torch.Tensor | None) -> None:
        """Say which branch of the level before each branch of the next forward goes on from; None: there is none."""
        self._parent_N = None
        if parent_BW is not None:
            width = self._own[0][0].shape[0] // parent_BW.shape[0]
            first_B1 = torch.arange(parent_BW.shape[0], device=parent_BW.device)[:, None] * width
            self._parent_N = (first_B1 + parent_BW).flatten()

    def keep(self, layer: int, keys_NGE: torch.Tensor, values_NGE: torch.Tensor) -> None:
        """See `tree_forward.Attention`."""
        own = (keys_NGE[:, None], values_NGE[:, None])
        if self._parent_N is None:
            self._own.append(own)
            return
        self._own[layer] = tuple(
            torch.cat([old.index_select(0, self._parent_N), new], dim=1)
            for old, new in zip(self._own[layer], own, strict=True)
        )

    def attend(
        self, layer: int, queries_NHE: torch.Tensor, scale: float, wanted_P: torch.Tensor | None
    ) -> torch.Tensor:
        """See `tree_forward.Attention`."""
        assert wanted_P is None, "every branch token is wanted"
        history_keys, history_values = self._keys[layer], self._values[layer]
        own_keys_NAGE, own_values_NAGE = self._own[layer]
        prompts, groups, longest, size = history_keys.shape
        per_group, ancestors = queries_NHE.shape[1] // groups, own_keys_NAGE.shape[1]
        queries_BWGQE = (queries_NHE * scale).view(prompts, -1, groups, per_group, size)
        width = queries_BWGQE.shape[1]
        queries_BGME = queries_BWGQE.permute(0, 2, 1, 3, 4).reshape(prompts, groups, width * per_group, size)
        scores = queries_NHE.new_empty(prompts, groups, width * per_group, longest + ancestors)
        scores[..., :longest] = queries_BGME @ history_keys.transpose(2, 3)
        if self._bias_B11T is not None:
            scores[..., :longest] += self._bias_B11T
        own_BWAGE = own_keys_NAGE.view(prompts, width, ancestors, groups, size)
        own_BGWQA = torch.einsum("bwgqe,bwage->bgwqa", queries_BWGQE, own_BWAGE)
        scores[..., longest:] = own_BGWQA.flatten(2, 3)
        weights = torch.softmax(scores.float(), dim=-1).to(scores.dtype)
        read_BGME = weights[..., :longest] @ history_values
        own_weights = weights[..., longest:].unflatten(2, (width, per_group))
        read_BWGQE = read_BGME.unflatten(2, (width, per_group)).permute(0, 2, 1, 3, 4)
        own_BWAGE = own_values_NAGE.view(prompts, width, ancestors, groups, size)
        read_BWGQE = read_BWGQE + torch.einsum("bgwqa,bwage->bwgqe", own_weights, own_BWAGE)
        return read_BWGQE.reshape(queries_NHE.shape)
