"""The catalogue's trie as a vLLM logits processor: constrained and free requests may share a batch.

vLLM builds the processor itself, in every worker process of an engine, and hands it the engine's configuration alone.
The trie therefore travels as a file: `additional_config={TRIE_PATH: path of a saved trie}`, readable on the engine's
node. What a request wants travels in `SamplingParams.extra_args`, made by `constraint`; a request without it is free.

Each constrained request has a node of the trie, advanced by the tokens it has produced since the last step. One mask is
computed per distinct (node, excluded items) of the batch: the K candidates of a prompt start at the same node.
"""

import numpy as np
import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from catalog.trie import DEAD, Exclusions, Trie

TRIE_PATH = "trie_path"  # key of additional_config
CONSTRAINT = "trie"  # key of extra_args


def constraint(node: int, excluded: np.ndarray) -> dict[str, dict[str, int | bytes]]:
    """The `extra_args` of a request that goes on from a trie node and must not produce the excluded item rows."""
    return {CONSTRAINT: {"node": int(node), "excluded": np.unique(excluded).astype(np.int32).tobytes()}}


class TrieLogitsProcessor(LogitsProcessor):
    """Sets the logits of all tokens that lead off the trie, or to excluded items alone, to minus infinity.

    State is one slot per row of vLLM's batch. It relies on every token being known before the next step is prepared,
    so the engine must run without asynchronous scheduling.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._trie = Trie.load(vllm_config.additional_config[TRIE_PATH])
        self._device = device
        slots = vllm_config.scheduler_config.max_num_seqs
        self._constrained = np.zeros(slots, dtype=bool)
        self._node = np.zeros(slots, dtype=np.int32)
        self._walked = np.zeros(slots, dtype=np.int32)  # output tokens that `_node` accounts for
        self._exclusion = np.zeros(slots, dtype=np.int64)  # request number within `_exclusions`
        self._excluded: list[bytes] = [b""] * slots
        self._outputs: list[list[int]] = [[]] * slots  # vLLM's own growing lists, by reference
        self._numbers: dict[bytes, int] = {}  # excluded items -> request number
        self._exclusions = Exclusions(self._trie, [])

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Nothing to refuse: requests are made by `constraint`, not by users."""

    def is_argmax_invariant(self) -> bool:
        """False: a masked token may well be the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow vLLM's batch: rows removed, then added, then moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._constrained[row] = False
        unknown = False
        for row, params, _, outputs in batch_update.added:
            wanted = (params.extra_args or {}).get(CONSTRAINT)
            self._constrained[row] = wanted is not None
            if wanted is None:
                continue
            self._node[row], self._excluded[row] = wanted["node"], wanted["excluded"]
            self._walked[row], self._outputs[row] = 0, outputs
            number = self._numbers.get(wanted["excluded"], -1)
            self._exclusion[row] = number
            unknown |= number < 0
        for source, target, direction in batch_update.moved:
            self._move(source, target, swap=direction is MoveDirectionality.SWAP)
        if unknown:
            self._number_exclusions()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask `[R, V]` in place."""
        rows = np.flatnonzero(self._constrained[: len(logits)])
        if len(rows) == 0:
            return logits
        self._advance(rows)
        stride = len(self._numbers)
        keys, inverse = np.unique(self._node[rows] * np.int64(stride) + self._exclusion[rows], return_inverse=True)
        forbidden = ~self._trie.mask(keys // stride, self._exclusions, keys % stride)
        mask = torch.from_numpy(forbidden).to(self._device)[torch.from_numpy(inverse).to(self._device)]
        if len(rows) == len(logits):
            return logits.masked_fill_(mask, -torch.inf)
        at = torch.from_numpy(rows).to(self._device)
        logits[at] = logits[at].masked_fill_(mask, -torch.inf)
        return logits

    def _advance(self, rows: np.ndarray) -> None:
        """Walk each row's node along the tokens it has produced. A request resumed after a preemption walks several."""
        outputs = self._outputs
        produced = np.fromiter((len(outputs[row]) for row in rows), dtype=np.int32, count=len(rows))
        while len(late := rows[self._walked[rows] < produced]):
            tokens = np.fromiter((outputs[row][self._walked[row]] for row in late), dtype=np.int64, count=len(late))
            self._node[late] = self._trie.step(self._node[late], tokens)
            assert (self._node[late] != DEAD).all(), "a constrained request produced a token off the trie"
            self._walked[late] += 1

    def _move(self, source: int, target: int, swap: bool) -> None:
        for array in (self._constrained, self._node, self._walked, self._exclusion):
            array[[source, target]] = array[[target, source]]
        for column in (self._excluded, self._outputs):
            column[source], column[target] = column[target], column[source]
        if not swap:
            self._constrained[source] = False

    def _number_exclusions(self) -> None:
        """Number the distinct sets of excluded items of the batch anew; forget sets that no row uses any more."""
        rows = np.flatnonzero(self._constrained)
        self._numbers = {key: number for number, key in enumerate(dict.fromkeys(self._excluded[row] for row in rows))}
        self._exclusion[rows] = [self._numbers[self._excluded[row]] for row in rows]
        self._exclusions = Exclusions(self._trie, [np.frombuffer(key, dtype=np.int32) for key in self._numbers])
