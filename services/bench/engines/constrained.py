"""`constrained`: what the trie costs in the vLLM engine, constrained against free sampling over catalogue
sizes.

One engine serves all sizes: its policy has tokens for the largest catalogue, and each size is a new version
of the catalogue that the running engine loads. K and settings are the same on both sides, and every run has
prompts of its own from one distribution, so that none finds its prefill done. Constrained requests also
exclude the items of their history, as rollouts do. The engine is one thread of this process, so what is timed
is processor time, which other work on the machine distorts less than it does wall time; on a GPU it is wall
time.
"""

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.services.bench.engines.trie import random_codes
from sluice.services.bench.harness import BenchOptions, median_seconds, print_note, time_alternately
from sluice.services.bench.support import device

_LEVEL_SIZES = (256, 256, 256)
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_QUICK_SIZES = (1_000, 100_000)
_HISTORY = 50  # items
_CANDIDATES = 16  # K
_PROMPTS, _QUICK_PROMPTS = 32, 16  # in flight together, and in a timed run
_LIMIT_S = 7200.0


def run(options: BenchOptions) -> dict[str, Any]:
    """Rows by catalogue size; `ratio` is constrained over free throughput.

    vLLM is configured by its process's environment, so the engine has a process of its own.
    """
    settings, before = device.vllm_settings(options.threads), dict(os.environ)
    os.environ.update(engine_environment(settings))
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measure, options, settings).result(_LIMIT_S)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _measure(options: BenchOptions, settings: VllmEngineSettings) -> dict[str, Any]:
    """Runs in the engine's process."""
    from sluice.actors.engines.vllm.engine import VllmEngine

    prompts = _QUICK_PROMPTS if options.quick else _PROMPTS
    positions = 1 + (_HISTORY + 1) * len(_LEVEL_SIZES)
    policy = build_policy(device.policy_settings(), _LEVEL_SIZES, positions, options.seed)
    sizes = _QUICK_SIZES if options.quick else _SIZES
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        save_policy(policy, Path(directory) / "policy")
        engine = VllmEngine(
            policy_dir=Path(directory) / "policy",
            vocabulary=_vocabulary(sizes[0], policy.layout, 0, options),
            decoding=Decoding(candidates=_CANDIDATES),
            engine=settings,
            seed=options.seed,
            max_prompt_tokens=1 + _HISTORY * len(_LEVEL_SIZES),
            prompts_in_flight=prompts,
        )
        try:
            rows = [
                _row(engine, policy.layout, size, version + 1, prompts, options)
                for version, size in enumerate(sizes)
            ]
        finally:
            engine.close()
    return {
        "prompts": prompts,
        "candidates": _CANDIDATES,
        "history": _HISTORY,
        "level_sizes": _LEVEL_SIZES,
        "clock": device.device_clock()[0],
        "rows": rows,
    }


def _vocabulary(size: int, layout: TokenLayout, version: int, options: BenchOptions) -> Vocabulary:
    return Vocabulary.of(random_codes(size, _LEVEL_SIZES, options.seed), layout, version=version)


def _row(
    engine: Any, layout: TokenLayout, size: int, version: int, prompts: int, options: BenchOptions
) -> dict[str, Any]:
    print_note(f"constrained: {size} items")
    vocabulary = _vocabulary(size, layout, version, options)
    load_s = engine.load_catalogue(vocabulary)
    random = np.random.default_rng(options.seed)
    sampled: dict[str, int] = {}

    def side(name: str) -> None:
        decoding = Decoding(candidates=_CANDIDATES, constrained=name == "constrained")
        histories = random.integers(0, size, (prompts, _HISTORY)).astype(np.int32)
        requests = [
            GenerateRequest(
                request_id=f"{name}-{row}",
                prompt=layout.prompt(vocabulary.item_tokens, history),
                excluded=history,
            )
            for row, history in enumerate(histories)
        ]
        engine.submit(requests, decoding)
        items = np.concatenate([vocabulary.trie.lookup(group.tokens) for group in _drain(engine)])
        sampled[name] = int((items >= 0).sum())

    sides = {name: partial(side, name) for name in ("free", "constrained")}
    seconds = time_alternately(sides, options.repeats, device.device_clock()[1])
    assert sampled["constrained"] == prompts * _CANDIDATES, "constrained sampling left the catalogue"
    figures = median_seconds(seconds)
    ratio = figures["free"] / figures["constrained"]
    print_note(f"constrained: {size} items: {ratio:.3f} of free sampling")
    return {
        "items": size,
        "ratio": ratio,
        "free_s": figures["free"],
        "constrained_s": figures["constrained"],
        "free_candidates_that_are_items": sampled["free"] / (prompts * _CANDIDATES),
        "load_catalogue_s": load_s,
    }


def _drain(engine: Any) -> list[Any]:
    done = []
    while engine.in_flight:
        done += engine.step()
    return done
