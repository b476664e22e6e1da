"""The catalogue's trie during tree decoding: which codes may follow, on the model's device.

The arrays of `catalog.trie.Trie` as tensors (the same memory on a CPU). What a level costs depends on the children of
the nodes asked about, not on the catalogue. No loop over prompts, branches or items.

Dimension suffixes: B prompts, W branches of a prompt, C codes of a level, M excluded nodes.
"""

import numpy as np
import torch

from catalog.trie import Trie
from catalog.vocabulary import Vocabulary


class DeviceTrie:
    """Nodes are those of `catalog.trie`; codes are tokens less the level's offset."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        """Put the trie of `vocabulary` on `device`."""
        self.trie, self.layout, self._device = vocabulary.trie, vocabulary.layout, device
        token, first, count = (
            torch.from_numpy(array).to(device)
            for array in (self.trie.token, self.trie.first_child, self.trie.child_count)
        )
        self._token, self._first, self._count = token, first, count

    def allowed(self, level: int, node_BW: torch.Tensor, exclusions: "Exclusions | None") -> torch.Tensor:
        """bool `[B, W, C]`: codes that lead on to an item; none from a node that is -1."""
        size, offset = self.layout.level_sizes[level], self.layout.level_offsets[level]
        node_R = node_BW.flatten()
        count_R = self._count[node_R]  # -1 reads the last node, a leaf: it has no children either
        row_E = torch.repeat_interleave(torch.arange(len(node_R), device=self._device), count_R)
        start_R = torch.cumsum(count_R, 0) - count_R
        child_E = self._first[node_R[row_E]] + torch.arange(len(row_E), device=self._device) - start_R[row_E]
        allowed_BWC = torch.zeros(*node_BW.shape, size, dtype=torch.bool, device=self._device)
        allowed_BWC.view(-1)[row_E * size + self._token[child_E] - offset] = True
        if exclusions is not None:
            prompt_M, parent_M, code_M = exclusions.levels[level]
            at_M, branch_M = torch.nonzero(node_BW[prompt_M] == parent_M[:, None], as_tuple=True)
            allowed_BWC[prompt_M[at_M], branch_M, code_M[at_M]] = False
        return allowed_BWC

    def step(self, level: int, node_BW: torch.Tensor, code_BW: torch.Tensor) -> torch.Tensor:
        """The child of each node along each code, int64; -1 where there is none."""
        node_BW = node_BW.long()
        token_BW = code_BW + self.layout.level_offsets[level]
        low_BW = self._first[node_BW].long()
        end_BW = low_BW + self._count[node_BW]
        high_BW = end_BW
        for _ in range(self.layout.level_sizes[level].bit_length()):  # bisection: children ascend by token
            middle_BW = (low_BW + high_BW) // 2
            before = (middle_BW < high_BW) & (self._token[middle_BW.clamp(max=len(self._token) - 1)] < token_BW)
            low_BW, high_BW = torch.where(before, middle_BW + 1, low_BW), torch.where(before, high_BW, middle_BW)
        found = (low_BW < end_BW) & (self._token[low_BW.clamp(max=len(self._token) - 1)] == token_BW)
        return torch.where(found, low_BW, -1)


class Exclusions:
    """Items that prompts must not produce, as the branches of the trie with no other item below them."""

    def __init__(self, device_trie: DeviceTrie, excluded: list[np.ndarray], device: torch.device) -> None:
        """`excluded[b]` are the item rows that prompt b must not produce; repeats are allowed."""
        trie, layout = device_trie.trie, device_trie.layout
        prompt_M = np.repeat(np.arange(len(excluded)), [len(items) for items in excluded])
        leaf_M = trie.item_leaf[np.concatenate(excluded).astype(np.int64)].astype(np.int64)
        prompt_M, leaf_M = np.unique(np.stack([prompt_M, leaf_M]), axis=1)
        # of each level: prompt, parent node and code of every child that leads to excluded items alone
        self.levels: list[tuple[torch.Tensor, ...]] = []
        parent_M = np.zeros_like(leaf_M)
        for level, start in enumerate(_level_starts(trie)):
            node_M = _ancestors(trie, start, leaf_M)
            key, first, count = np.unique(prompt_M * trie.nodes + node_M, return_index=True, return_counts=True)
            node = key % trie.nodes
            whole = count == trie.leaf_high[node] - trie.leaf_low[node]
            found = (prompt_M[first], parent_M[first], trie.token[node] - np.int64(layout.level_offsets[level]))
            self.levels.append(tuple(torch.from_numpy(part[whole]).to(device) for part in found))
            parent_M = node_M


def _level_starts(trie: Trie) -> list[int]:
    """The first node of every depth below the root."""
    starts = [1]
    while len(starts) < trie.levels:
        starts.append(int(trie.first_child[starts[-1]]))
    return starts


def _ancestors(trie: Trie, start: int, leaves: np.ndarray) -> np.ndarray:
    """The node above each leaf position, of the depth whose nodes begin at `start`."""
    end = int(trie.first_child[start]) if trie.child_count[start] else trie.nodes
    return start + np.searchsorted(trie.leaf_low[start:end], leaves, side="right") - 1
