"""The catalogue's trie during tree decoding: which codes may follow, on the model's device.

`sluice.catalog.trie.tensors` answers. Here its R rows are those of B prompts with W branches each, and its
columns the C codes of a level.
"""

import numpy as np
import torch

from sluice.catalog.trie.arrays import DEAD
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.vocabulary import Vocabulary


class DeviceTrie:
    """One version of the catalogue.

    Nodes are those of `sluice.catalog.trie.trie`; codes are tokens less the level's offset.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        """Put the trie of `vocabulary` on `device`."""
        self.trie, self.layout, self._device = vocabulary.trie, vocabulary.layout, device
        self._tensors = self.trie.on(device)
        self._depth_start = self.trie.depth_start.tolist()

    def exclusions(self, excluded: list[np.ndarray]) -> Exclusions:
        """`excluded[b]` are the item rows that prompt b must not produce; repeats are allowed."""
        return Exclusions(self.trie, excluded)

    def allowed(self, level: int, node_BW: torch.Tensor, exclusions: Exclusions | None) -> torch.Tensor:
        """bool `[B, W, C]`: codes that lead on to an item; none from a node that is off the trie."""
        prompts, width = node_BW.shape
        node_R = node_BW.flatten()
        prompt_R = torch.arange(prompts, device=self._device).repeat_interleave(width)
        some_node_R = torch.where(node_R == DEAD, self._depth_start[level], node_R)
        followed = self._tensors.allowed(level, some_node_R, exclusions, prompt_R) & (node_R != DEAD)[:, None]
        first = self._tensors.token_low[level] - self.layout.level_offsets[level]
        allowed_RC = followed.new_zeros(len(node_R), self.layout.level_sizes[level])
        allowed_RC[:, first : first + followed.shape[1]] = followed
        return allowed_RC.view(prompts, width, -1)

    def step(self, level: int, node_BW: torch.Tensor, code_BW: torch.Tensor) -> torch.Tensor:
        """The child of each node along each code, int64; DEAD where there is none."""
        return self._tensors.step(node_BW, code_BW + self.layout.level_offsets[level]).long()
