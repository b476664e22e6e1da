"""Histories run through the model once: none twice in a batch, nor again while their batch is remembered.

A history that another one of the batch goes on from is read off the longer one on its way, since causal
attention does not see what comes later. `PrefixCache` keeps the keys and values of past batches, so that a
history which extends an old one computes its new tokens only. Both give the results of running every history
alone.

Dimension suffixes as in `sluice.learner.decoding.attention`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sluice.learner.decoding.attention import HistoryAttention, KnownRow, RowGeometry
from sluice.learner.decoding.forward import Forward

_TOKEN_BYTES = 8
# The share of a history that is worth finding: many histories have their first items in common, and rows of
# which something is known attend apart from the others, on a CPU more slowly.
_LEAST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """B histories, ready for any number of decodings."""

    keys: list[torch.Tensor]  # of each layer, [B, G, T, E]; beyond a history's end something of its own
    values: list[torch.Tensor]
    lengths_B: torch.Tensor  # int64
    hidden_BD: torch.Tensor  # last hidden state of each history's last token


def prefix_bytes(model: PreTrainedModel, tokens: int, stride: int) -> int:
    """Bytes that a `PrefixCache` keeps of a history of `tokens` tokens, whose items have `stride` each.

    These are the keys and values, and the tokens that find them.
    """
    config: Any = model.config  # its fields are those of the architecture
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    tensors = 2 * config.num_hidden_layers * heads * size * tokens * model.dtype.itemsize
    return int(tensors) + _start_bytes(tokens, stride)


def _start_bytes(tokens: int, stride: int) -> int:
    """Bytes of each start's last item and of the number of the start before."""
    starts = _starts(tokens, stride)
    return _TOKEN_BYTES * (len(starts) + starts[-1]) if starts else 0


def _starts(tokens: int, stride: int) -> range:
    """Lengths of the starts that a history is found by: BOS, which all have, and one item at least."""
    return range(1 + stride, tokens + 1, stride)


@dataclass(eq=False)
class _Batch:
    keys: list[torch.Tensor]  # of each layer, [R, G, T, E]
    values: list[torch.Tensor]
    nbytes: int
    starts: list[tuple[int, bytes]] = field(default_factory=list)


class PrefixCache:
    """Keys and values of the latest batches, found by the tokens that a history starts with.

    Batches are kept whole and dropped oldest first. A row that is found is part of the new batch too, so what
    is dropped is what has not been used for longest. Starts are numbered, and found item by item: by the
    number of the start before and the tokens of the item. Items end every `stride` tokens after BOS.
    """

    def __init__(self, max_bytes: int, stride: int) -> None:
        """An empty cache.

        Args:
            max_bytes: bound of the tensors and of the tokens that find them; a batch above it is not kept.
            stride: tokens of an item.
        """
        self._max_bytes, self._stride = max_bytes, stride
        self._batches: deque[_Batch] = deque()
        # (number of the start before, the item's tokens) -> number of this start
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._places: dict[int, tuple[_Batch, int]] = {}  # number -> the latest row that starts so
        self._last = 0
        self.nbytes = 0
        self.asked_tokens = 0  # tokens of the rows looked up
        self.found_tokens = 0  # of these, tokens not computed again

    def find(self, tokens: np.ndarray, limit: int) -> KnownRow | None:
        """The longest start of `tokens` `[n]` that is known; None when it is shorter than a quarter of them.

        The start has at most `limit` tokens.
        """
        self.asked_tokens += len(tokens)
        number, length = 0, 0
        for until, item in self._items(tokens[:limit]):
            following = self._numbers.get((number, item))
            if following is None:
                break
            number, length = following, until
        if length < _LEAST_SHARE * len(tokens):
            return None
        batch, row = self._places[number]
        self.found_tokens += length
        return KnownRow(keys=batch.keys, values=batch.values, row=row, length=length)

    def add(self, rows: list[np.ndarray], keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Keep a batch: tokens of its rows, keys and values of each layer `[R, G, T, E]`."""
        batch = _Batch(
            keys=keys,
            values=values,
            nbytes=sum(part.nbytes for part in (*keys, *values))
            + sum(_start_bytes(len(tokens), self._stride) for tokens in rows),
        )
        if batch.nbytes > self._max_bytes:
            return
        for row, tokens in enumerate(rows):
            place, number = (batch, row), 0
            for _, item in self._items(tokens):
                start = (number, item)
                number = self._numbers.setdefault(start, self._last + 1)
                self._last = max(self._last, number)
                self._places[number] = place
                batch.starts.append(start)
        self._batches.append(batch)
        self.nbytes += batch.nbytes
        while self.nbytes > self._max_bytes:
            self._drop()

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        while self._batches:
            self._drop()

    def _drop(self) -> None:
        batch = self._batches.popleft()
        self.nbytes -= batch.nbytes
        # Rows that go on from a start are rows that start so: no start is kept longer than the one before it.
        for start in batch.starts:
            number = self._numbers.get(start)
            if number is not None and self._places[number][0] is batch:
                del self._numbers[start], self._places[number]

    def _items(self, tokens: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Where each item ends, and its tokens; BOS belongs to the first."""
        data, before = tokens.tobytes(), 0
        for until in _starts(len(tokens), self._stride):
            yield until, data[_TOKEN_BYTES * before : _TOKEN_BYTES * until]
            before = until


def prefill_histories(
    forward: Forward,
    history_BT: np.ndarray,
    lengths_B: np.ndarray,
    device: torch.device,
    cache: PrefixCache | None,
) -> Prefix:
    """Run right-padded histories through the model once.

    Args:
        forward: of the model.
        history_BT: token ids int64, padded with any token.
        lengths_B: tokens of each history, int64, at least 1.
        device: of the model.
        cache: what past batches left, and where this one's keys and values go; None: neither.
    """
    row_B, prompt_R = share_rows(history_BT, lengths_B)
    known: dict[int, KnownRow] = {}
    if cache is not None:
        # The last token of every history is computed anyway: its hidden state is what decoding starts from.
        limit_R = np.full(len(prompt_R), np.iinfo(np.int64).max)
        np.minimum.at(limit_R, row_B, lengths_B - 1)
        hits = [
            cache.find(history_BT[prompt, : lengths_B[prompt]], int(limit))
            for prompt, limit in zip(prompt_R, limit_R, strict=True)
        ]
        fresh_first = np.argsort([hit is not None for hit in hits], kind="stable")
        row_B, prompt_R = np.argsort(fresh_first)[row_B], prompt_R[fresh_first]
        known = {row: hit for row, hit in enumerate(hits[old] for old in fresh_first) if hit is not None}
    rows = [history_BT[prompt, : lengths_B[prompt]] for prompt in prompt_R]
    known_R = np.asarray([known[row].length if row in known else 0 for row in range(len(rows))])
    lengths_R = lengths_B[prompt_R]
    geometry = RowGeometry(
        known_R=known_R, lengths_R=_filled(known_R, lengths_R) if device.type == "cpu" else lengths_R
    )
    row_P, position_P = geometry.packed()
    end_B = lengths_B - 1
    attention = HistoryAttention(geometry, known, (row_B, end_B), device)
    first_R = np.searchsorted(row_P, np.arange(len(rows)))
    predicting_B = torch.from_numpy(first_R[row_B] + end_B - geometry.known_R[row_B])
    tokens_P = torch.from_numpy(history_BT[prompt_R[row_P], position_P])
    hidden_BD = forward(
        tokens_P.to(device), torch.from_numpy(position_P).to(device), attention, predicting_B.to(device)
    )
    if cache is not None:
        cache.add(rows, attention.keys, attention.values)
    one_each = bool((row_B == np.arange(len(row_B))).all())
    index_B = torch.from_numpy(row_B).to(device)

    def of_prompts(kept: list[torch.Tensor]) -> list[torch.Tensor]:
        return kept if one_each else [part.index_select(0, index_B) for part in kept]

    return Prefix(
        keys=of_prompts(attention.keys),
        values=of_prompts(attention.values),
        lengths_B=torch.from_numpy(lengths_B).to(device),
        hidden_BD=hidden_BD,
    )


def _filled(known_R: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    """Lengths that make a round number of new tokens, up to 2% more, by tokens behind the ends of fresh rows.

    Nothing attends to those. oneDNN prepares its kernels for every number of tokens that it has not seen.
    """
    new = int((lengths_R - known_R).sum())
    unit = 1 << min(6, max(0, new.bit_length() - 7))
    room_R = np.where(known_R == 0, lengths_R.max() - lengths_R, 0)
    return lengths_R + np.diff(np.minimum(np.cumsum(room_R), -new % unit), prepend=0)


def share_rows(history_BT: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are enough for all histories, longest first.

    Returns:
        row_B: the row that each history is the start of, int64.
        prompt_R: the history that each row is, int64.
    """
    past_BT = np.arange(history_BT.shape[1]) >= lengths_B[:, None]
    tokens_BT = np.where(past_BT, -1, history_BT)
    order = np.lexsort(tokens_BT.T[::-1])  # a history stands right before those that go on from it
    this, following = tokens_BT[order[:-1]], tokens_BT[order[1:]]
    goes_on = np.append(((this == following) | (this == -1)).all(axis=1), False)
    # Within the order, a history's row is the next one that nothing goes on from.
    heads = np.flatnonzero(~goes_on)
    head_of = heads[np.searchsorted(heads, np.arange(len(order)))]
    prompt_R = order[heads]
    longest_first = np.lexsort((prompt_R, -lengths_B[prompt_R]))
    place_R = np.empty_like(longest_first)
    place_R[longest_first] = np.arange(len(heads))
    row_B = np.empty(len(order), dtype=np.int64)
    row_B[order] = place_R[np.searchsorted(heads, head_of)]
    return row_B, prompt_R[longest_first]
