"""The catalogue's trie as a vLLM logits processor: constrained and free requests may share a batch.

vLLM builds the processor itself, in every worker process of an engine, and hands it the engine's
configuration alone. A trie therefore has a name, the directory it is saved in: `additional_config={TRIE_PATH:
name}` for the engine's first, and a request may name another. Where engine and worker are one process, the
name stands for the trie itself. What a request wants travels in `SamplingParams.extra_args`, made by
`trie_constraint`; a request without it is free.

Each constrained request has a node of its trie, advanced by the tokens it has produced since the last step. A
request goes on with the trie it was added with, whatever catalogue the engine has loaded since.
"""

import shutil
from collections.abc import Sequence
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from sluice.catalog.trie.arrays import DEAD
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.trie import Trie

TRIE_PATH = "trie_path"  # key of additional_config
CONSTRAINT = "trie"  # key of extra_args

_in_process: dict[str, Trie] = {}  # tries offered to the processors of this process, by name


class OfferedTries:
    """The engine's side: the tries that its logits processors may be asked for."""

    def __init__(self, directory: Path, *, files: bool) -> None:
        """`files`: the processors run in worker processes of their own, so tries reach them as files."""
        self._directory, self._files = directory, files
        self._names: set[str] = set()

    def name(self, trie: Trie) -> str:
        """What `trie_constraint` calls this trie."""
        return f"{self._directory}/trie-{trie.version}"  # asked for with every request

    def offer(self, trie: Trie) -> str:
        """Make a trie known; returns its name."""
        name = self.name(trie)
        self._names.add(name)
        if self._files:
            trie.save(name)
        else:
            _in_process[name] = trie
        return name

    def keep(self, tries: Sequence[Trie]) -> None:
        """Withdraw all others. A processor keeps the memory or the mapped pages of those that it still has
        open.
        """
        for name in self._names - {self.name(trie) for trie in tries}:
            self._names.discard(name)
            if self._files:
                shutil.rmtree(name)
            else:
                del _in_process[name]


def trie_constraint(
    node: int, excluded: np.ndarray, trie: str | None = None
) -> dict[str, dict[str, int | bytes | str]]:
    """The `extra_args` of a request that goes on from a trie node and must not produce the excluded item
    rows.

    `trie` is the trie's name, None for the engine's first.
    """
    constraint: dict[str, int | bytes | str] = {
        "node": int(node),
        "excluded": np.unique(excluded).astype(np.int32).tobytes(),
    }
    return {CONSTRAINT: constraint if trie is None else constraint | {"trie": trie}}


class _Catalogue:
    """One trie with the sets of excluded items that requests under way have."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.trie = _in_process[name] if name in _in_process else Trie.load(name)
        self.tensors = self.trie.on(device)
        self.numbers: dict[bytes, int] = {}  # excluded items -> request number within `exclusions`
        self.exclusions = Exclusions(self.trie, [])
        self._parts: dict[bytes, Exclusions] = {}

    def number(self, excluded: list[bytes]) -> list[int]:
        """The numbers of sets of excluded items that all requests of this trie have; sets not among them are
        forgotten.

        Only sets that are new are worked out.
        """
        keys = dict.fromkeys(excluded)
        new = [key for key in keys if key not in self._parts]
        parts = Exclusions(self.trie, [np.frombuffer(key, dtype=np.int32) for key in new]).split()
        self._parts |= dict(zip(new, parts, strict=True))
        self._parts = {key: self._parts[key] for key in keys}
        self.numbers = {key: number for number, key in enumerate(keys)}
        self.exclusions = Exclusions.joined(list(self._parts.values()))
        return [self.numbers[key] for key in excluded]


class TrieLogitsProcessor(LogitsProcessor):
    """Sets the logits of all tokens that lead off the trie, or to excluded items alone, to minus infinity.

    State is one slot per row of vLLM's batch. It relies on every token being known before the next step is
    prepared, so the engine must run without asynchronous scheduling.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        additional = vllm_config.additional_config
        assert isinstance(additional, dict), "the engine is started with a dict"
        self._first: str = additional[TRIE_PATH]
        self._catalogues = {self._first: _Catalogue(self._first, device)}
        slots = vllm_config.scheduler_config.max_num_seqs
        self._constrained = np.zeros(slots, dtype=bool)
        self._node = np.zeros(slots, dtype=np.int32)
        self._walked = np.zeros(slots, dtype=np.int32)  # output tokens that `_node` accounts for
        self._exclusion = np.zeros(slots, dtype=np.int64)  # request number within its catalogue's exclusions
        self._trie_name = np.full(slots, self._first, dtype=object)
        self._excluded: list[bytes] = [b""] * slots
        self._outputs: list[list[int]] = [[]] * slots  # vLLM's own growing lists, by reference

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Nothing to refuse: requests are made by `trie_constraint`, not by users."""

    def is_argmax_invariant(self) -> bool:
        """False: a masked token may well be the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow vLLM's batch: rows removed, then added, then moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._constrained[row] = False
        unknown: set[str] = set()
        for row, params, _, outputs in batch_update.added:
            constraint = (params.extra_args or {}).get(CONSTRAINT)
            self._constrained[row] = constraint is not None
            if constraint is None:
                continue
            name = self._trie_name[row] = constraint.get("trie", self._first)
            self._node[row], self._excluded[row] = constraint["node"], constraint["excluded"]
            self._walked[row], self._outputs[row] = 0, outputs
            known = self._catalogues.get(name)
            self._exclusion[row] = number = known.numbers.get(constraint["excluded"], -1) if known else -1
            if number < 0:
                unknown.add(name)
        for source, target, direction in batch_update.moved:
            self._move(source, target, swap=direction is MoveDirectionality.SWAP)
        if unknown:
            self._open(unknown)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask `[R, V]` in place."""
        rows = np.flatnonzero(self._constrained[: len(logits)])
        if len(rows) == 0:
            return logits
        for catalogue, own in self._by_catalogue(rows):
            self._advance(catalogue.trie, own)
            every = None if len(own) == len(logits) else own
            catalogue.tensors.restrict(
                logits, self._node[own], every, catalogue.exclusions, self._exclusion[own]
            )
        return logits

    def _by_catalogue(self, rows: np.ndarray) -> list[tuple[_Catalogue, np.ndarray]]:
        """The catalogues that these rows use, with their rows; all but always one."""
        if len(self._catalogues) == 1:
            return [(next(iter(self._catalogues.values())), rows)]
        names = self._trie_name[rows]
        own = [(catalogue, rows[names == name]) for name, catalogue in self._catalogues.items()]
        return [(catalogue, part) for catalogue, part in own if len(part)]

    def _advance(self, trie: Trie, rows: np.ndarray) -> None:
        """Walk each row's node along the tokens it has produced. A request resumed after a preemption walks
        several.
        """
        outputs = list(map(self._outputs.__getitem__, rows.tolist()))
        behind = np.fromiter(map(len, outputs), dtype=np.int32, count=len(rows)) - self._walked[rows]
        while len(late := np.flatnonzero(behind > 0)):
            own = rows[late]
            # Lists of Python integers are all that vLLM offers; map keeps the loop over them out of the
            # interpreter.
            produced = map(getitem, map(outputs.__getitem__, late.tolist()), self._walked[own].tolist())
            self._node[own] = trie.step(
                self._node[own], np.fromiter(produced, dtype=np.int64, count=len(own))
            )
            assert (self._node[own] != DEAD).all(), "a constrained request produced a token off the trie"
            self._walked[own] += 1
            behind[late] -= 1

    def _move(self, source: int, target: int, swap: bool) -> None:
        for array in (self._constrained, self._node, self._walked, self._exclusion, self._trie_name):
            array[[source, target]] = array[[target, source]]
        columns: tuple[list[Any], ...] = (self._excluded, self._outputs)
        for column in columns:
            column[source], column[target] = column[target], column[source]
        if not swap:
            self._constrained[source] = False

    def _open(self, names: set[str]) -> None:
        """Open tries that are not open, close those that no row uses, and number these tries' excluded items
        anew.
        """
        rows = np.flatnonzero(self._constrained)
        used = set(self._trie_name[rows].tolist())
        for name in used - self._catalogues.keys():
            self._catalogues[name] = _Catalogue(name, self._device)
        self._catalogues = {name: open_ for name, open_ in self._catalogues.items() if name in used}
        for name in names & used:
            own = rows[self._trie_name[rows] == name]
            self._exclusion[own] = self._catalogues[name].number(
                [self._excluded[row] for row in own.tolist()]
            )
