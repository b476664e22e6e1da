"""`trie`: the mask of a batch of prefixes, against a dictionary of prefixes, over catalogue sizes.

The other side is what code in the manner of MiniOneRec does, re-implemented from its description: a
dictionary from a prefix, as a string, to the list of tokens that may follow, asked row by row through a
`prefix_allowed_tokens_fn` by a logits processor that writes the answer into a mask of minus infinities and
adds it to the scores. Ours advances each row's node by the last token and restricts the scores in place. A
decode is every level once; the masked scores of both must be equal. Both sides are one thread of plain
computation, so what is timed is the processor time of this process, which other work on the machine distorts
less than it does wall time. On a GPU the scores are there, as they are in an engine, and what is timed is
wall time until the GPU is done.

`builds`: wall time of making the trie of a catalogue of four levels, on all cores and on one, in a process of
its own; the memory that the arrays take and the peak above the input while they are made.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.trie import Trie
from sluice.services.bench.harness import BenchOptions, median_seconds, print_note, time_alternately
from sluice.services.bench.support import device

_ROWS = 1024
_LEVEL_SIZES = (256, 256, 256)
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_QUICK_SIZES = (1_000, 100_000)
_BUILD_SIZES = (1_000_000, 10_000_000, 20_000_000)
_QUICK_BUILD_SIZES = (1_000_000,)
_BUILD_LEVELS = 4
_SPREAD = 2_654_435_761  # an odd number: multiplication by it permutes the integers below 2**32
_DECODES = 20  # of ours in one timed run; one of the dictionary takes longer than these
# A dictionary of 1e7 items holds about as many strings and lists: minutes, and more memory than most machines
# have.
_LARGEST_DICTIONARY = 1_000_000


def run(options: BenchOptions) -> dict[str, Any]:
    """Rows by catalogue size; `speedup` is None where the dictionary was not built."""
    rows = [_measure(size, options) for size in (_QUICK_SIZES if options.quick else _SIZES)]
    builds = [
        _build(size, options.repeats) for size in (_QUICK_BUILD_SIZES if options.quick else _BUILD_SIZES)
    ]
    return {
        "batch": _ROWS,
        "level_sizes": _LEVEL_SIZES,
        "clock": device.device_clock()[0],
        "dictionary_stopped_at_items": _LARGEST_DICTIONARY,
        "rows": rows,
        "builds": builds,
    }


def random_codes(size: int, level_sizes: tuple[int, ...], seed: int) -> np.ndarray:
    """`size` distinct codes `[size, L]`, every possible one as likely as any other."""
    capacity = int(np.prod(level_sizes, dtype=np.int64))
    drawn = np.random.default_rng(seed).choice(capacity, size, replace=False, shuffle=False)
    return np.stack(np.unravel_index(drawn, level_sizes), axis=1)


def prefix_lists(item_tokens: np.ndarray) -> dict[str, list[int]]:
    """The other side's dictionary: prefix as a string -> tokens that may follow."""
    allowed: dict[str, set[int]] = {}
    for tokens in item_tokens.tolist():
        for level, token in enumerate(tokens):
            allowed.setdefault("-".join(map(str, tokens[:level])), set()).add(token)
    return {key: list(tokens) for key, tokens in allowed.items()}


def by_dictionary(
    allowed: dict[str, list[int]], sequences: torch.Tensor, level: int, scores: torch.Tensor
) -> torch.Tensor:
    """The other side's logits processor: `sequences` `[R, T + level]` end with the tokens produced so far."""
    mask = torch.full_like(scores, -torch.inf)
    for row, sequence in enumerate(sequences):
        produced = sequence[len(sequence) - level :].tolist()
        tokens = allowed.get("-".join(map(str, produced)), [])
        if tokens:
            mask[row, tokens] = 0
    return scores + mask


def _measure(size: int, options: BenchOptions) -> dict[str, Any]:
    layout = TokenLayout.fresh(_LEVEL_SIZES)
    item_tokens = layout.encode(random_codes(size, _LEVEL_SIZES, options.seed))
    trie, build_s = _timed(lambda: Trie.build(item_tokens, layout.vocab_size))
    random = np.random.default_rng(options.seed)
    chosen = item_tokens[random.integers(0, size, _ROWS)]
    here = device.bench_device()
    scores = torch.randn(_ROWS, layout.vocab_size, generator=torch.Generator().manual_seed(options.seed)).to(
        here
    )
    tensors = trie.on(here)
    ours_out, theirs_out = [scores.clone() for _ in _LEVEL_SIZES], [scores] * layout.levels

    def ours() -> None:
        for _ in range(_DECODES):
            decode()

    def decode() -> None:
        node = np.zeros(_ROWS, dtype=np.int32)
        for level in range(layout.levels):
            if level > 0:
                node = trie.step(node, chosen[:, level - 1])
            tensors.restrict(ours_out[level], node)

    row = {
        "items": size,
        "build_s": build_s,
        "memory_mib": trie.nbytes / 2**20,
        "bytes_per_item": trie.nbytes / size,
    }
    sides: dict[str, Callable[[], None]] = {"ours": ours}
    if size <= _LARGEST_DICTIONARY:
        print_note(f"trie: {size} items, dictionary")
        allowed, row["dictionary_build_s"] = _timed(lambda: prefix_lists(item_tokens))
        sequences = [torch.from_numpy(chosen[:, :level]) for level in range(layout.levels)]

        def dictionary() -> None:
            for level in range(layout.levels):
                theirs_out[level] = by_dictionary(allowed, sequences[level], level, scores)

        sides["dictionary"] = dictionary
    figures = median_seconds(time_alternately(sides, options.repeats, device.device_clock()[1]))
    ours_s = figures["ours"] / _DECODES
    row["us_per_step"] = ours_s / layout.levels * 1e6
    row["speedup"] = None
    if "dictionary" in figures:
        assert all(torch.equal(*pair) for pair in zip(ours_out, theirs_out, strict=True)), (
            "the two sides disagree"
        )
        row["dictionary_us_per_step"] = figures["dictionary"] / layout.levels * 1e6
        row["speedup"] = figures["dictionary"] / ours_s
    print_note(
        f"trie: {size} items: {row['us_per_step']:.0f} us per step, {row['speedup'] or float('nan'):.0f}x"
    )
    return row


def _build(size: int, repeats: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        row = pool.submit(_build_here, size, repeats).result()
    print_note("trie: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return row


def _build_here(size: int, repeats: int) -> dict[str, Any]:
    layout = TokenLayout.fresh((256,) * _BUILD_LEVELS)
    codes = (np.arange(size) * _SPREAD % 2**32).astype(">u4")
    item_tokens = layout.encode(codes.view(np.uint8).reshape(size, _BUILD_LEVELS))
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    trie = Trie.build(item_tokens, layout.vocab_size)
    peak = _resident_mib("VmHWM")
    cores = os.sched_getaffinity(0)

    def build(on: set[int]) -> None:
        os.sched_setaffinity(0, on)
        Trie.build(item_tokens, layout.vocab_size)

    figures = median_seconds(
        time_alternately({"all": lambda: build(cores), "one": lambda: build({min(cores)})}, repeats)
    )
    return {
        "items": size,
        "build_s": figures["all"],
        "build_one_core_s": figures["one"],
        "cores": len(cores),
        "memory_mib": trie.nbytes / 2**20,
        "bytes_per_item": trie.nbytes / size,
        "peak_mib": peak - before,
    }


def _resident_mib(name: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    started_s = time.perf_counter()
    made = make()
    return made, time.perf_counter() - started_s
