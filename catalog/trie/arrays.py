"""The arrays of a trie as they lie in memory, in a file and in an object store; what their queries share.

Nothing here asks the trie anything: `sluice.catalog.trie.trie` and `sluice.catalog.trie.tensors` do.
"""

import json
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch

from sluice.catalog.errors import DataError
from sluice.catalog.files import write_atomically

DEAD = -1  # the node off the trie
_NUMBERS = "numbers.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrieArrays:
    """CSR arrays of a trie over the live items of a catalogue of N item rows, L tokens each."""

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

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.token)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def save(self, path: str | Path) -> None:
        """Write the arrays into a directory, one `.npy` file each."""
        Path(path).mkdir(parents=True, exist_ok=True)
        numbers = {}
        for name, value in self.__getstate__().items():
            if isinstance(value, np.ndarray):
                np.save(Path(path) / f"{name}.npy", value)
            else:
                numbers[name] = value
        write_atomically(Path(path) / _NUMBERS, json.dumps(numbers))  # last: `load` looks for it

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Map what `save` wrote.

        Pages are read when a query first needs them, and processes of a machine share them.

        Raises:
            DataError: the directory holds no trie.
        """
        if not (Path(path) / _NUMBERS).is_file():
            raise DataError(f"{path} holds no saved trie ({_NUMBERS} is missing)")
        numbers = json.loads((Path(path) / _NUMBERS).read_text())
        names = [field.name for field in fields(cls) if field.name not in numbers]
        return cls(**numbers, **{name: np.load(Path(path) / f"{name}.npy", mmap_mode="r") for name in names})


def bits_row_bytes(width: int) -> int:
    """Bytes of a node's bits: one per token, and at least one more for a mask to write what is not meant."""
    return width // 8 + 1


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the array's own memory."""
    with warnings.catch_warnings():
        # Mapped files and arrays from an object store are read-only; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
