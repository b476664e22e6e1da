"""The queries of a trie as tensor operations, one implementation for numpy's memory, the CPU and a GPU.

A step is a binary search among a node's children. A mask reads a level's bits where it has them and otherwise
writes the children's tokens; either way it touches the token range of one level, not the vocabulary. The
number of operations depends on the number of levels alone, and nothing waits for the device.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from sluice.catalog.trie.arrays import DEAD, TrieArrays, bits_row_bytes, shared_tensor
from sluice.catalog.trie.exclusions import Exclusions

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class TrieTensors:
    """The arrays of a trie on one device."""

    def __init__(self, trie: TrieArrays, device: torch.device) -> None:
        self.device = device
        self.levels, self.vocab_size = trie.levels, trie.vocab_size
        self.token_low, self.width = trie.token_low.tolist(), trie.width.tolist()
        self._depth_start = trie.depth_start
        self._most_children = trie.most_children.tolist()
        self._token = shared_tensor(trie.token).to(device)
        self._first_child = shared_tensor(trie.first_child).to(device)
        bits = shared_tensor(trie.bits).to(device)
        self._bits: list[torch.Tensor | None] = []
        for level, start in enumerate(trie.bits_start.tolist()):
            nodes, row_bytes = int(np.diff(trie.depth_start)[level]), bits_row_bytes(self.width[level])
            self._bits.append(bits[start : start + nodes * row_bytes].view(nodes, -1) if start >= 0 else None)
        # What each byte of bits says of its eight tokens, least significant bit first.
        byte = torch.arange(256)[:, None] >> torch.arange(8) & 1
        self._allowed = byte.bool().to(device)
        self._penalty = torch.where(byte.bool(), 0.0, -torch.inf).to(device)

    def step(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The child (int32) of each node along each token (int64, same shapes), DEAD where there is none."""
        most = max(self._most_children)
        return child_along(
            torch, self._token, self._first_child, most, nodes, tokens.clip(-1, self.vocab_size).int()
        )

    def allowed(
        self,
        level: int,
        nodes: torch.Tensor,
        exclusions: Exclusions | None = None,
        requests: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Which tokens may follow nodes `[R]` of depth `level`, bool `[R, width[level]]`.

        The first column is the token `token_low[level]`. All tensors are int64 and on this device. `requests`
        `[R]` are those of `exclusions`.
        """
        return self._follow(self._allowed, level, nodes, exclusions, requests)

    def penalties(
        self,
        level: int,
        nodes: torch.Tensor,
        exclusions: Exclusions | None = None,
        requests: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `allowed`, but float32 to add to logits: 0 where allowed, -inf elsewhere.

        On CPUs an addition takes a tenth of the time of a masked fill.
        """
        return self._follow(self._penalty, level, nodes, exclusions, requests)

    def mask(
        self, nodes: np.ndarray, exclusions: Exclusions | None = None, requests: np.ndarray | None = None
    ) -> torch.Tensor:
        """Allowed next tokens, bool `[R, vocab_size]`, of nodes `[R]` at any depth.

        None is allowed at a leaf or off the trie. `requests` `[R]` are those of `exclusions`.
        """
        mask = torch.zeros(len(nodes), self.vocab_size, dtype=torch.bool, device=self.device)
        for level, rows, at, owners in self._by_level(nodes, requests):
            low, high = self.token_low[level], self.token_low[level] + self.width[level]
            allowed = self.allowed(level, at, exclusions, owners)
            if rows is None:
                mask[:, low:high] = allowed
            else:
                mask[:, low:high].index_copy_(0, rows, allowed)
        return mask

    def restrict(
        self,
        logits: torch.Tensor,
        nodes: np.ndarray,
        rows: np.ndarray | None = None,
        exclusions: Exclusions | None = None,
        requests: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Set to -inf, in place, the logits of tokens that may not follow; returns the logits.

        Args:
            logits: `[B, V]`; V may be larger than the trie's vocabulary.
            nodes: `[R]`, the inner node that each restricted row has reached.
            rows: `[R]`, which rows of the logits these are; None: all, and R = B.
            exclusions: items to leave out.
            requests: `[R]`, which request of `exclusions` each node belongs to.
        """
        restricted = None if rows is None else torch.from_numpy(rows).to(self.device)
        for level, within, at, owners in self._by_level(nodes, requests):
            low, high = self.token_low[level], self.token_low[level] + self.width[level]
            penalties = self.penalties(level, at, exclusions, owners)
            own = within if restricted is None else restricted if within is None else restricted[within]
            if own is None:
                logits[:, :low] = -torch.inf
                logits[:, high:] = -torch.inf
                logits[:, low:high] += penalties
                continue
            kept = logits[:, low:high].index_select(0, own).add_(penalties)
            logits.index_fill_(0, own, -torch.inf)
            logits[:, low:high].index_copy_(0, own, kept)
        return logits

    def _follow(
        self,
        byte: torch.Tensor,
        level: int,
        nodes: torch.Tensor,
        exclusions: Exclusions | None,
        requests: torch.Tensor | None,
    ) -> torch.Tensor:
        """Values `[R, width]` out of `byte` `[256, 8]`: row 0 forbids the first token, row 1 allows it."""
        bits, width, forbidden, permitted = self._bits[level], self.width[level], byte[0, 0], byte[1, 0]
        excluding = exclusions is not None and len(exclusions) > 0
        if bits is None or excluding:
            first, end = children_of(torch, self._first_child, nodes)
        if bits is not None:
            rows = bits.index_select(0, nodes - int(self._depth_start[level]))
            table = byte.index_select(0, rows.flatten().int()).view(len(nodes), -1)
        else:
            table = forbidden.repeat(len(nodes), width + 1)
            children = first[:, None] + torch.arange(
                self._most_children[level], dtype=torch.int32, device=self.device
            )
            self._mark(table, level, children, children < end[:, None], permitted)
        if exclusions is not None and excluding:
            assert requests is not None, "exclusions belong to requests"
            children, meant = exclusions.children(requests, first, end)
            self._mark(table, level, children, meant, forbidden)
        return table[:, :width]

    def _mark(
        self,
        table: torch.Tensor,
        level: int,
        children: torch.Tensor,
        meant: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        """Write `value` at the children's tokens where `meant`; the column past the level takes the rest."""
        token = self._token[children.clamp(0, len(self._token) - 1)].long() - self.token_low[level]
        table.scatter_(1, torch.where(meant, token, self.width[level]), value.expand_as(token))

    def _by_level(
        self, nodes: np.ndarray, requests: np.ndarray | None
    ) -> Iterator[tuple[int, torch.Tensor | None, torch.Tensor, torch.Tensor | None]]:
        """(level, rows at that level or None for all, their nodes, their requests), grouped on the host."""
        nodes = np.asarray(nodes, dtype=np.int64)
        depth = np.searchsorted(self._depth_start[: self.levels + 1], nodes, side="right") - 1
        for level in range(self.levels):
            rows = np.flatnonzero(depth == level)
            if len(rows) == 0:
                continue
            at = None if len(rows) == len(nodes) else torch.from_numpy(rows).to(self.device)
            owners = (
                None
                if requests is None
                else torch.from_numpy(requests[rows].astype(np.int64)).to(self.device)
            )
            yield level, at, torch.from_numpy(nodes[rows]).to(self.device), owners


def child_along(
    xp: Any, token: Array, first_child: Array, most_children: int, nodes: Array, tokens: Array
) -> Array:
    """The child of each node along each token, int32 in the shape of `nodes`, DEAD where there is none.

    It is a binary search among the node's children.

    Args:
        xp: numpy or torch, whichever the arrays are of. A step of a thousand rows is dozens of tiny
            operations, which numpy starts in a third of the time that torch takes.
        token: int32 `[nodes]`.
        first_child: int32 `[inner nodes + 1]`.
        most_children: of any node.
        nodes: int64, any shape.
        tokens: int32, the same shape.
    """
    low, end = children_of(xp, first_child, nodes)
    last = end - 1
    for power in reversed(range(most_children.bit_length())):
        # All children before `low` come before the token; jump 2^power more if they do too. It jumps past the
        # end only when every child comes before the token.
        jump = low + (1 << power)
        low = xp.where(token[xp.minimum(jump - 1, last)] < tokens, jump, low)
    matches = (low < end) & (token[xp.minimum(low, last)] == tokens)
    child: Array = xp.where(matches, low, DEAD)
    return child


def children_of(xp: Any, first_child: Array, nodes: Array) -> tuple[Array, Array]:
    """First child of each node and one past its last (int32); an empty range for leaves and DEAD."""
    inner = (nodes >= 0) & (nodes < len(first_child) - 1)
    node = xp.where(inner, nodes, 0)
    first = first_child[node]
    return first, xp.where(inner, first_child[node + 1], first)
