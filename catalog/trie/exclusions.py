"""The items that each of several requests must not produce, in the form that a trie's mask needs.

A node is covered when every item below it is excluded. Excluding e items covers few nodes beside their own
leaves, and the covered children of a node are one range of the sorted covered nodes, so a mask costs the same
whatever the size of the catalogue.
"""

from collections.abc import Sequence

import numpy as np
import torch

from sluice.catalog.trie.arrays import TrieArrays


class Exclusions:
    """The covered nodes of several requests, as one sorted array of (request, node) keys."""

    def __init__(self, trie: TrieArrays, items: Sequence[np.ndarray]) -> None:
        """`items[r]` are the item rows excluded for request r; repeats and retired items are allowed."""
        leaves = [trie.item_leaf[rows] for rows in items]
        owner = np.repeat(np.arange(len(items)), [len(rows) for rows in leaves])
        leaf = np.concatenate(leaves) if leaves else np.empty(0, dtype=np.int32)
        owner, leaf = owner[leaf >= 0], leaf[leaf >= 0].astype(np.int64)
        stride = trie.nodes
        keys = np.unique(owner * stride + leaf + trie.depth_start[trie.levels])
        covered, self._longest = [keys], 0
        for _ in range(trie.levels):
            if len(keys) == 0:
                break
            owner, node = keys // stride, keys % stride
            # Keys ascend and so do the parents of a depth's nodes, so equal parents stand together.
            # The search compares in one dtype: int64 nodes would make it copy all of `first_child`.
            parent = np.searchsorted(trie.first_child, node.astype(np.int32), side="right") - 1
            parents, counts = np.unique(owner * stride + parent, return_counts=True)
            self._longest = max(self._longest, int(counts.max()))
            node = parents % stride
            keys = parents[counts == trie.first_child[node + 1] - trie.first_child[node]]
            covered.append(keys)
        self._set(np.sort(np.concatenate(covered)), stride, len(items))

    @classmethod
    def joined(cls, parts: Sequence["Exclusions"]) -> "Exclusions":
        """The requests of all parts, numbered on from part to part. The parts belong to one trie."""
        joined = cls.__new__(cls)
        first = np.cumsum([0] + [part.requests for part in parts])
        joined._longest = max((part._longest for part in parts), default=0)
        keys = [part._keys + first[at] * part._stride for at, part in enumerate(parts)]
        stride = parts[0]._stride if parts else 0
        joined._set(np.concatenate(keys) if keys else np.empty(0, dtype=np.int64), stride, int(first[-1]))
        return joined

    def split(self) -> list["Exclusions"]:
        """One part per request."""
        bounds = np.searchsorted(self._keys, np.arange(self.requests + 1) * self._stride)
        parts = []
        for request in range(self.requests):
            part = Exclusions.__new__(Exclusions)
            part._longest = self._longest
            part._set(
                self._keys[bounds[request] : bounds[request + 1]] - request * self._stride, self._stride, 1
            )
            parts.append(part)
        return parts

    def _set(self, keys: np.ndarray, stride: int, requests: int) -> None:
        self._keys, self._stride, self.requests = keys, stride, requests
        self._tensors: dict[torch.device, torch.Tensor] = {}

    def __len__(self) -> int:
        """Covered nodes of all requests together."""
        return len(self._keys)

    def covers(self, trie: TrieArrays, nodes: np.ndarray, requests: np.ndarray) -> np.ndarray:
        """bool `[R]`: every item below `nodes[r]` of the trie is excluded for `requests[r]`."""
        assert trie.nodes == self._stride
        keys = requests.astype(np.int64) * self._stride + nodes
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[at] == keys if len(self._keys) else np.zeros(len(nodes), dtype=bool)

    def children(
        self, requests: torch.Tensor, first: torch.Tensor, end: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The covered among the siblings `first[r]` to `end[r]` for `requests[r]`, all int64 `[R]`.

        Returns:
            Nodes `[R, C]` and bool `[R, C]`, which of these are meant; C is the most that any node has.
        """
        if first.device not in self._tensors:
            self._tensors[first.device] = torch.from_numpy(self._keys).to(first.device)
        keys, base = self._tensors[first.device], requests * self._stride
        low, high = torch.searchsorted(keys, base + first), torch.searchsorted(keys, base + end)
        at = low[:, None] + torch.arange(self._longest, device=first.device)
        return keys[at.clamp(max=len(keys) - 1)] - base[:, None], at < high[:, None]
