"""The prefix trie of all semantic IDs, as flat arrays: which tokens may follow, for a whole batch at once.

Nodes are numbered depth by depth, in the order of their tokens: 0 is the root, the last N are the items, -1 is off the
trie. The children of a node are therefore one contiguous range of nodes with ascending tokens. A level at which nodes
have many children also keeps a bit per node and token, as long as that takes no more bytes than the tokens do.

The arrays stay numpy's: they can be memory-mapped, and an object store hands them out without a copy. The queries, in
`catalog.trie_tensors`, run on the same memory or on a copy on a device. No query loops over requests or items. An
excluded item is taken out per request: a child is forbidden when every item below it is excluded.
"""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from catalog.errors import DataError
from catalog.exclusions import Exclusions
from catalog.trie_build import build_arrays
from catalog.trie_tensors import DEAD, TrieTensors, descend

_NUMBERS = "numbers.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie:
    """CSR trie over the live items of a catalogue of N item rows, L tokens each."""

    version: int  # of the catalogue
    levels: int  # L
    vocab_size: int
    depth_start: np.ndarray  # int64 [L + 2], first node of each depth, and the number of nodes
    token: np.ndarray  # int32 [nodes], the token that leads to a node; -1 for the root
    first_child: np.ndarray  # int32 [inner nodes + 1]; the children of node n end where those of n + 1 begin
    leaf_item: np.ndarray  # int32 [live items], item row of each leaf
    item_leaf: np.ndarray  # int32 [N], leaf of each item row, -1: retired
    token_low: np.ndarray  # int64 [L], smallest token of each level
    width: np.ndarray  # int64 [L], tokens from the smallest to the largest of the level
    most_children: np.ndarray  # int64 [L], of any node whose children are at that level
    bits: np.ndarray  # uint8, levels with bits one after the other, [nodes of the depth, width // 8 + 1] each
    bits_start: np.ndarray  # int64 [L], where a level's bits begin; -1: it has none

    @classmethod
    def build(
        cls, item_tokens: np.ndarray, vocab_size: int, *, version: int = 0, retired: np.ndarray | None = None
    ) -> "Trie":
        """Build from item tokens `[N, L]`; item rows in `retired` keep their tokens but can't be reached.

        Raises:
            DataError: two items have the same tokens, or there is no item.
        """
        arrays = build_arrays(item_tokens, np.empty(0, dtype=np.int64) if retired is None else retired)
        return cls(version=version, levels=item_tokens.shape[1], vocab_size=vocab_size, **arrays)

    @property
    def items(self) -> int:
        """Items that can be reached."""
        return len(self.leaf_item)

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.token)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @cached_property
    def host(self) -> TrieTensors:
        """The queries on this memory."""
        return TrieTensors(self, torch.device("cpu"))

    def on(self, device: torch.device) -> TrieTensors:
        """The queries on a device: a copy there, or this memory for the CPU."""
        return self.host if device.type == "cpu" else TrieTensors(self, device)

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The child of each node along each token (same shapes), DEAD where there is none."""
        tokens = np.clip(tokens, -1, self.vocab_size).astype(np.int32)
        most = int(self.most_children.max())
        return descend(np, self.token, self.first_child, most, np.asarray(nodes), tokens)

    def child_count(self, node: int) -> int:
        """Children of an inner node."""
        return int(self.first_child[node + 1] - self.first_child[node])

    def walk(self, tokens: np.ndarray) -> np.ndarray:
        """Nodes `[..., L + 1]` along token sequences `[..., L]`, root first; DEAD once a sequence leaves the trie."""
        path = [np.zeros(tokens.shape[:-1], dtype=np.int32)]
        for level in range(tokens.shape[-1]):
            path.append(self.step(path[-1], tokens[..., level]))
        return np.stack(path, axis=-1)

    def lookup(self, tokens: np.ndarray) -> np.ndarray:
        """Item rows of token sequences `[..., L]`, -1 where the sequence is no item."""
        node = self.walk(tokens)[..., -1]
        leaf = np.maximum(node - int(self.depth_start[self.levels]), 0)
        return np.where(node != DEAD, self.leaf_item[leaf], -1).astype(np.int32)

    def mask(
        self, nodes: np.ndarray, exclusions: Exclusions | None = None, requests: np.ndarray | None = None
    ) -> np.ndarray:
        """Allowed next tokens, bool `[R, vocab_size]`, for nodes `[R]`; nothing is allowed at a leaf or off the trie.

        `requests` `[R]` says which request of `exclusions` each node belongs to.
        """
        return self.host.mask(nodes, exclusions, requests).numpy()

    def save(self, path: str | Path) -> None:
        """Write the arrays into a directory, one `.npy` file each."""
        Path(path).mkdir(parents=True, exist_ok=True)
        numbers = {}
        for name, value in self.__getstate__().items():
            if isinstance(value, np.ndarray):
                np.save(Path(path) / f"{name}.npy", value)
            else:
                numbers[name] = value
        (Path(path) / _NUMBERS).write_text(json.dumps(numbers))

    @classmethod
    def load(cls, path: str | Path) -> "Trie":
        """Map what `save` wrote: pages are read when a query first needs them, and processes of a node share them.

        Raises:
            DataError: there is no trie.
        """
        if not (Path(path) / _NUMBERS).is_file():
            raise DataError(f"{path} holds no saved trie ({_NUMBERS} is missing)")
        numbers = json.loads((Path(path) / _NUMBERS).read_text())
        names = [field.name for field in fields(cls) if field.name not in numbers]
        return cls(**numbers, **{name: np.load(Path(path) / f"{name}.npy", mmap_mode="r") for name in names})
