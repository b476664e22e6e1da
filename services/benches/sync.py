"""New weights from the learner to n rollout engines: how long until all of them use it, and how long they pause.

Real vLLM engines in actors on a Ray cluster of two nodes (`ray.cluster_utils`, one machine), through the object store.
`busy`: all of them generate and look for weights between their steps, as a rollout actor does; otherwise they have
nothing to generate, so no step under way comes before the load.

bare_load_s: `load_weights` of an idle engine, from memory of its own process: what a swap costs at the very least.
seconds: from `publish` of weights that are packed (the learner packs while nothing waits for it) to the last engine's
    having loaded them; `ratio` is against the bare load. Engines that share cores load one after another, so the bare
    load of `ceil(n / cores)` turns is what n engines cannot beat; `ratio` is against that.
pause_s: from the end of the engine's last step with the old weights to the beginning of its first with the new;
    `load_s` is the part of it that was the load itself.
copies: nodes that hold the weights in their object store.
"""

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from actors.calls import answer
from actors.engine import GenerateRequest
from actors.settings import DecodeSettings, EngineSettings
from actors.vllm_configuration import engine_environment
from actors.weight_board import WeightBoard, WeightPublisher, WeightSource
from catalog.tokens import TokenLayout
from catalog.vocabulary import Vocabulary
from learner.policy import Policy, build_policy, save_policy
from learner.settings import PolicySettings
from learner.weights import PackedWeights, pack
from services.bench import BenchOptions, note

LEVEL_SIZES = (256, 256, 256)
ITEMS = 2000
PROMPT_ITEMS = 20
NODES = 2
_START_S = 300.0
_ACTIVE_S = 120.0
_IDLE_S = 0.001


def run(options: BenchOptions) -> dict[str, Any]:
    """A row per number of engines."""
    counts = (2,) if options.quick else (1, 2, 4)
    sizes = PolicySettings(
        hidden_size=256 if options.quick else 512, layers=8, heads=8, feed_forward_size=768 if options.quick else 1536
    )
    layout = TokenLayout.fresh(LEVEL_SIZES)
    policy = build_policy(sizes, LEVEL_SIZES, 1 + 3 * (PROMPT_ITEMS + 1), options.seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    with tempfile.TemporaryDirectory() as directory:
        save_policy(policy, Path(directory) / "policy")
        for _ in range(NODES - 1):
            cluster.add_node(num_cpus=2)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            engines = _start(max(counts), Path(directory) / "policy", options.seed, layout)
            versions = itertools.count(1)  # they go on from row to row, since engines take later ones only
            rows = [
                _measure(engines[:count], policy, versions, options.repeats, busy)
                for count, busy in itertools.product(counts, (True, False))
            ]
        finally:
            ray.shutdown()
            cluster.shutdown()
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())
    return {"bytes": nbytes, "memcpy_gb_per_s": _memcpy_gb_per_s(nbytes), "nodes": NODES, "rows": rows}


class Receiver:
    """An engine that generates without end and takes new weights as a rollout actor does."""

    def __init__(self, policy: Path, layout: TokenLayout, seed: int) -> None:
        from actors.vllm_engine import VllmEngine

        generator = np.random.default_rng(seed)
        codes = np.unique(generator.integers(0, LEVEL_SIZES, (ITEMS, 3)).astype(np.int32), axis=0)
        self._vocabulary = Vocabulary.of(codes, layout)
        self._items = len(codes)
        self._engine = VllmEngine(
            policy_dir=policy,
            vocabulary=self._vocabulary,
            decode=DecodeSettings(candidates=8),
            engine=EngineSettings(),
            seed=seed,
            max_prompt_tokens=1 + 3 * PROMPT_ITEMS,
            prompts_in_flight=8,
        )
        self._generator = generator
        self._number = 0

    def bare_load(self, weights: PackedWeights, repeats: int) -> list[float]:
        """Seconds of loads of weights that lie in this process, all tensors of them."""
        own = PackedWeights(
            version=weights.version,
            manifest=weights.manifest,
            buffers={dtype: buffer.copy() for dtype, buffer in weights.buffers.items()},
            checksum=weights.checksum,
        )
        seconds = []
        for _ in range(repeats + 1):
            self._engine._loaded = ()  # else nothing would be loaded the second time
            seconds.append(self._engine.load_weights(own))
        return seconds[1:]

    def receive(self, board: Any, version: int, busy: bool) -> dict[str, float]:
        """Generate, or wait, until the engine has `version`."""
        source = WeightSource(board)
        until_s = time.monotonic() + _ACTIVE_S
        while not busy and self._engine.in_flight:
            self._engine.step()
        while time.monotonic() < until_s:
            if busy:
                self._step()
            else:
                time.sleep(_IDLE_S)
            stopped_s = time.monotonic()
            weights = source.poll(self._engine.version)
            if weights is not None:
                load_s = self._engine.load_weights(weights)
                active_s = time.monotonic()
                if weights.version == version:
                    return {"active_s": active_s, "load_s": load_s, "pause_s": active_s - stopped_s}
        raise RuntimeError(f"weights version {version} did not come within {_ACTIVE_S:g} s")

    def ready(self) -> str:
        """The node; answers when the engine is there and warm."""
        for _ in range(3):
            self._step()
        return ray.get_runtime_context().get_node_id()

    def _step(self) -> None:
        while self._engine.in_flight < 8:
            self._number += 1
            history = self._generator.integers(0, self._items, PROMPT_ITEMS)
            prompt = self._vocabulary.layout.prompt(self._vocabulary.item_tokens, history)
            request = GenerateRequest(request_id=str(self._number), prompt=prompt, excluded=np.empty(0, dtype=np.int32))
            self._engine.submit([request])
        self._engine.step()


def _start(count: int, policy: Path, seed: int, layout: TokenLayout) -> list[Any]:
    """Engines spread over the nodes."""
    remote = ray.remote(Receiver).options(
        num_cpus=0.5,
        scheduling_strategy="SPREAD",
        max_concurrency=1,
        runtime_env={"env_vars": engine_environment(EngineSettings()) | {"PYTHONPATH": os.getcwd()}},
    )
    engines = [remote.remote(policy, layout, seed + number) for number in range(count)]
    for number, engine in enumerate(engines):
        answer(engine.ready.remote(), f"engine {number}", _START_S)
        note(f"engine {number} of {count} is there")
    return engines


def _measure(engines: list[Any], policy: Policy, versions: Iterator[int], repeats: int, busy: bool) -> dict[str, Any]:
    board = ray.remote(WeightBoard).options(num_cpus=0, max_concurrency=100).remote()
    publisher = WeightPublisher(board)
    first = pack(policy.model.named_parameters(), next(versions))
    bare = answer(engines[0].bare_load.remote(ray.put(first), repeats), "the bare load", _ACTIVE_S)
    runs, copies = [], 0
    for version in itertools.islice(versions, repeats + 1):
        with_change = pack(
            ((name, value.detach() + version * 1e-6) for name, value in policy.model.named_parameters()), version
        )
        waiting = [engine.receive.remote(board, version, busy) for engine in engines]
        time.sleep(0.5)  # all of them are at it
        started_s = time.monotonic()
        publisher.publish(with_change)
        found = [answer(reference, "an engine", _ACTIVE_S) for reference in waiting]
        (reference,) = answer(board.latest.remote(0, 0.0), "the board", _ACTIVE_S)[1]
        copies = len(ray.experimental.get_object_locations([reference])[reference]["node_ids"])
        runs.append(
            {
                "seconds": max(one["active_s"] for one in found) - started_s,
                "pause_s": max(one["pause_s"] for one in found),
                "load_s": max(one["load_s"] for one in found),
            }
        )
    middle = {name: statistics.median(one[name] for one in runs[1:]) for name in runs[0]}
    bare_s = statistics.median(bare)
    turns = math.ceil(len(engines) / (os.cpu_count() or 1))
    what = f"{len(engines)} {'busy' if busy else 'idle'} engines"
    note(f"{what}: {middle['seconds']:.3f} s, bare load {bare_s:.3f} s")
    return {
        "engines": len(engines),
        "busy": busy,
        "bare_load_s": bare_s,
        **middle,
        "ratio": middle["seconds"] / (bare_s * turns),
        "s_per_gb": middle["seconds"] / (first.nbytes / 1e9),
        "copies": copies,
    }


def _memcpy_gb_per_s(nbytes: int) -> float:
    source, target = np.ones(nbytes, dtype=np.uint8), np.empty(nbytes, dtype=np.uint8)
    seconds = []
    for _ in range(5):
        started_s = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started_s)
    return nbytes / statistics.median(seconds) / 1e9
