"""The prefix trie of all semantic IDs, as flat arrays: which tokens may follow, for a whole batch at once.

Nodes are numbered depth by depth, in the order of their tokens: 0 is the root, the last N are the items, -1
is off the trie. The children of a node are therefore one contiguous range of nodes with ascending tokens. A
level at which nodes have many children also keeps a bit per node and token, as long as that takes no more
bytes than the tokens do.

The arrays stay numpy's: they can be memory-mapped, and an object store hands them out without a copy. The
queries, in `sluice.catalog.trie.tensors`, run on the same memory or on a copy on a device. No query loops
over requests or items. An excluded item is taken out per request: a child is forbidden when every item below
it is excluded.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sluice.catalog.trie.arrays import DEAD, TrieArrays
from sluice.catalog.trie.build import build_arrays
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.tensors import TrieTensors, child_along


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie(TrieArrays):
    """CSR trie over the live items of a catalogue of N item rows, L tokens each."""

    @classmethod
    def build(
        cls, item_tokens: np.ndarray, vocab_size: int, *, version: int = 0, retired: np.ndarray | None = None
    ) -> "Trie":
        """Build from item tokens `[N, L]`; item rows in `retired` keep their tokens but can't be reached.

        >>> trie = Trie.build(np.array([[3, 5], [3, 6], [4, 5]]), vocab_size=7)
        >>> trie.items, trie.levels
        (3, 2)

        Raises:
            DataError: two items have the same tokens, or there is no item.
        """
        arrays = build_arrays(item_tokens, np.empty(0, dtype=np.int64) if retired is None else retired)
        return cls(version=version, levels=item_tokens.shape[1], vocab_size=vocab_size, **arrays)

    @property
    def items(self) -> int:
        """Items that can be reached."""
        return len(self.leaf_item)

    def items_without(self, excluded: np.ndarray) -> int:
        """How many items can be reached when the item rows in `excluded` are left out.

        Repeats and retired items in `excluded` count for nothing.

        >>> Trie.build(np.array([[3, 5], [3, 6], [4, 5]]), vocab_size=7).items_without(np.array([1, 1]))
        2
        """
        return self.items - int((self.item_leaf[np.unique(excluded)] >= 0).sum())

    @cached_property
    def host(self) -> TrieTensors:
        """The queries on this memory, for the CPU."""
        return TrieTensors(self, torch.device("cpu"))

    def on(self, device: torch.device) -> TrieTensors:
        """The queries on a device: a copy there, or this memory for the CPU."""
        return self.host if device.type == "cpu" else TrieTensors(self, device)

    def step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The child of each node along each token (same shapes), DEAD where there is none."""
        tokens = np.clip(tokens, -1, self.vocab_size).astype(np.int32)
        most = int(self.most_children.max())
        return child_along(np, self.token, self.first_child, most, np.asarray(nodes), tokens)

    def child_count(self, node: int) -> int:
        """Children of an inner node."""
        return int(self.first_child[node + 1] - self.first_child[node])

    def walk(self, tokens: np.ndarray) -> np.ndarray:
        """Nodes `[..., L + 1]` along token sequences `[..., L]`, root first; DEAD from where one leaves."""
        path = [np.zeros(tokens.shape[:-1], dtype=np.int32)]
        for level in range(tokens.shape[-1]):
            path.append(self.step(path[-1], tokens[..., level]))
        return np.stack(path, axis=-1)

    def lookup(self, tokens: np.ndarray) -> np.ndarray:
        """Item rows of token sequences `[..., L]`, -1 where the sequence is no item.

        >>> trie = Trie.build(np.array([[3, 5], [3, 6], [4, 5]]), vocab_size=7)
        >>> trie.lookup(np.array([[4, 5], [4, 6]])).tolist()
        [2, -1]
        """
        node = self.walk(tokens)[..., -1]
        leaf = np.maximum(node - int(self.depth_start[self.levels]), 0)
        return np.where(node != DEAD, self.leaf_item[leaf], -1).astype(np.int32)

    def mask(
        self, nodes: np.ndarray, exclusions: Exclusions | None = None, requests: np.ndarray | None = None
    ) -> np.ndarray:
        """Allowed next tokens, bool `[R, vocab_size]`, for nodes `[R]`.

        Nothing is allowed at a leaf or off the trie. `requests` `[R]` says which request of `exclusions` each
        node belongs to.

        >>> trie = Trie.build(np.array([[3, 5], [3, 6], [4, 5]]), vocab_size=7)
        >>> node = trie.step(np.array([0]), np.array([3]))
        >>> np.flatnonzero(trie.mask(node)[0]).tolist()
        [5, 6]
        """
        return self.host.mask(nodes, exclusions, requests).numpy()
