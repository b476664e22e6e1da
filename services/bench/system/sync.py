"""New weights from the learner to n rollout engines: how long until all of them use it, and how long they
pause.

Real vLLM engines in actors on a Ray cluster of two nodes (`ray.cluster_utils`, one machine), through the
object store: engine 0 on the publisher's node, engine 1 on the other, and so on. `busy`: all of them generate
and look for weights between their steps, as a rollout actor does; otherwise they have nothing to generate, so
no step under way comes before the load.

bare_load_s: `load_weights` of the n engines, idle, at once, each from memory of its own process; the longest
of them:
    what a swap costs at the very least.
bare_fetch_s: `ray.get` of as many bytes on the other node by an actor that does nothing else; 0 where no
other node
    takes part. The nodes are processes of one machine, so this is Ray's transfer over the loopback interface.
seconds: from `publish` of weights that are packed (the learner packs while nothing waits for it) to the last
engine's
    having loaded them. `ratio` is against the bare load, `ratio_fetch` against the bare fetch and the bare
    load, `ratio_memcpy` against one copy of the bytes in memory. Medians of the rounds, in each of which the
    bare side and the publication take turns; idle engines, whose rounds are short, have `_IDLE_ROUNDS` times
    as many.
pause_s: from the end of the engine's last step with the old weights to the beginning of its first with the
new;
    `load_s` is the part of it that was the load itself, `step_s` the step that a busy engine finished before
    it, and `ratio_pause` the pause against the bare load and that step.
copies: nodes that hold the weights in their object store.

`ratio`, `pause_s` and `s_per_gb` beside the rows are those of one idle engine. An idle engine here looks for
weights every `_IDLE_S`; an idle rollout actor, which nothing waits for, may let 0.2 s pass until it looks.
"""

import itertools
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sluice.actors.boards.weight_board import WeightBoard, WeightPublisher, WeightSource
from sluice.actors.calls import get_result
from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.environment import lower_thread_priority, raise_gc_threshold
from sluice.learner.policy.packed_weights import PackedWeights, pack_weights
from sluice.learner.policy.policy import Policy, build_policy, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.bench.harness import BenchOptions, in_turn, print_note
from sluice.services.bench.support import device
from sluice.services.bench.support.connection import bench_cluster, cluster_of

LEVEL_SIZES = (256, 256, 256)
ITEMS = 2000
PROMPT_ITEMS = 20
PROMPTS = 4  # in a busy engine
NODES = 2
_STORE_BYTES = 2**32  # of each node's object store
_START_S = 300.0
_ACTIVE_S = 120.0
_IDLE_S = 0.001
_IDLE_ROUNDS = 3
_TOGETHER_S = 0.2  # until engines that are asked to load have all been asked


def run(options: BenchOptions) -> dict[str, Any]:
    """Two rows, busy and idle, per number of engines."""
    counts = (1, 2) if options.quick else (1, 2, 4)
    width, layers = (256, 8) if options.quick else (1024, 12)  # 28 MB, 654 MB
    sizes = PolicySettings(hidden_size=width, layers=layers, heads=8, feed_forward_size=3 * width)
    layout = TokenLayout.fresh(LEVEL_SIZES)
    policy = build_policy(sizes, LEVEL_SIZES, 1 + 3 * (PROMPT_ITEMS + 1), options.seed)
    node = {"num_cpus": 2, "num_gpus": device.gpu_count(1), "object_store_memory": _STORE_BYTES}
    with tempfile.TemporaryDirectory() as directory, cluster_of(node, *[node] * (NODES - 1)) as cluster:
        policy_dir = Path(directory) / "policy"
        save_policy(policy, policy_dir)
        with bench_cluster(cluster.address):
            places = [
                NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in cluster.list_all_nodes()
            ]
            publication = _Publication(policy, places[-1])
            engines = _start(max(counts), places, publication.board, policy_dir, options.seed, layout)
            rows = [
                _measure(
                    engines[:count],
                    publication,
                    options.repeats if busy else _IDLE_ROUNDS * options.repeats,
                    busy,
                )
                for count, busy in itertools.product(counts, (True, False))
            ]
    idle = next(row for row in rows if not row["busy"])
    return {
        "bytes": publication.nbytes,
        "memcpy_gb_per_s": publication.nbytes / idle["memcpy_s"] / 1e9,
        "nodes": NODES,
        **{name: idle[name] for name in ("ratio", "pause_s", "s_per_gb")},
        "rows": rows,
    }


class Receiver:
    """An engine that generates without end and takes new weights between its steps, as a rollout actor does.

    Its process is set up as a rollout actor's.
    """

    def __init__(self, policy: Path, layout: TokenLayout, seed: int, board: Any) -> None:
        from sluice.actors.engines.vllm.engine import VllmEngine

        lower_thread_priority(but=threading.get_native_id())
        generator = np.random.default_rng(seed)
        codes = np.unique(generator.integers(0, LEVEL_SIZES, (ITEMS, 3)).astype(np.int32), axis=0)
        self._vocabulary = Vocabulary.of(codes, layout)
        self._items = len(codes)
        self._engine = VllmEngine(
            policy_dir=policy,
            vocabulary=self._vocabulary,
            decoding=Decoding(candidates=8),
            engine=VllmEngineSettings(),
            seed=seed,
            max_prompt_tokens=1 + 3 * PROMPT_ITEMS,
            prompts_in_flight=PROMPTS,
        )
        raise_gc_threshold()
        self._source = WeightSource(board)
        self._generator = generator
        self._number = 0

    def copy(self, weights: PackedWeights) -> None:
        """Finish what is under way and take a copy of the weights into this process."""
        while self._engine.in_flight:
            self._engine.step()
        buffers = {dtype: buffer.copy() for dtype, buffer in weights.buffers.items()}
        self._copy = replace(weights, buffers=buffers)

    def bare_load(self, begin_s: float) -> float:
        """Seconds of a load of that copy, all tensors of it, from `begin_s` on."""
        time.sleep(max(0.0, begin_s - time.monotonic()))
        load_s = self._engine.load_weights(self._copy)
        del self._copy
        return load_s

    def receive(self, version: int, busy: bool) -> dict[str, float]:
        """Generate, or wait, until the engine has `version`."""
        until_s, step_s = time.monotonic() + _ACTIVE_S, 0.0
        while not busy and self._engine.in_flight:
            self._engine.step()
        stopped_s = time.monotonic()
        while time.monotonic() < until_s:
            if busy:
                self._step()
                step_s = time.monotonic() - stopped_s
            else:
                time.sleep(_IDLE_S)
            stopped_s = time.monotonic()
            newer = self._source.poll(self._engine.version)
            if newer is not None:
                with newer.verifying() as weights:
                    load_s = self._engine.load_weights(weights)
                active_s = time.monotonic()
                if newer.version == version:
                    return {
                        "active_s": active_s,
                        "load_s": load_s,
                        "pause_s": active_s - stopped_s,
                        "step_s": step_s,
                    }
        raise RuntimeError(f"weights version {version} did not come within {_ACTIVE_S:g} s")

    def ready(self) -> None:
        """Answers when the engine is there and warm."""
        for _ in range(3):
            self._step()

    def _step(self) -> None:
        while self._engine.in_flight < PROMPTS:
            self._number += 1
            history = self._generator.integers(0, self._items, PROMPT_ITEMS)
            prompt = self._vocabulary.layout.prompt(self._vocabulary.item_tokens, history)
            request = GenerateRequest(
                request_id=str(self._number), prompt=prompt, excluded=np.empty(0, dtype=np.int32)
            )
            self._engine.submit([request])
        self._engine.step()


class Fetcher:
    """An actor that fetches objects and does nothing else."""

    def fetch(self, references: list[Any]) -> float:
        """Seconds until the object is on this node."""
        started_s = time.monotonic()
        ray.get(references[0])
        return time.monotonic() - started_s


class _Publication:
    """The learner's side: one version after the other."""

    def __init__(self, policy: Policy, far: NodeAffinitySchedulingStrategy) -> None:
        """`far` is a place on another node."""
        self._policy, self._version = policy, 0
        self.board: Any = ray.remote(WeightBoard).options(num_cpus=0, max_concurrency=100).remote()
        self._publisher = WeightPublisher(self.board)
        self._fetcher: Any = ray.remote(Fetcher).options(num_cpus=0, scheduling_strategy=far).remote()

    @property
    def nbytes(self) -> int:
        """Bytes of a version."""
        return sum(
            parameter.numel() * parameter.element_size() for parameter in self._policy.model.parameters()
        )

    def packed(self) -> PackedWeights:
        """The next version, in which every tensor differs from the one before."""
        self._version += 1
        named = self._policy.model.named_parameters()
        return pack_weights(
            ((name, value.detach() + self._version * 1e-6) for name, value in named), self._version
        )

    def publish(self, weights: PackedWeights) -> None:
        """Put it on the board."""
        self._publisher.publish(weights)

    def copies(self) -> int:
        """Nodes that hold the version on the board."""
        (reference,) = get_result(self.board.latest.remote(0, 0.0), "the board", _ACTIVE_S)[1]
        return len(ray.experimental.get_object_locations([reference])[reference]["node_ids"])

    def memcpy(self) -> float:
        """Seconds of one copy of as many bytes in memory."""
        source = np.ones(self.nbytes, dtype=np.uint8)
        target = np.ones_like(source)  # its pages are there
        started_s = time.perf_counter()
        np.copyto(target, source)
        return time.perf_counter() - started_s

    def bare_fetch(self) -> float:
        """Seconds of a transfer of as many bytes to the other node."""
        reference = ray.put(np.ones(self.nbytes, dtype=np.uint8))
        return float(get_result(self._fetcher.fetch.remote([reference]), "the other node", _ACTIVE_S))


def _start(
    count: int,
    places: list[NodeAffinitySchedulingStrategy],
    board: Any,
    policy: Path,
    seed: int,
    layout: TokenLayout,
) -> list[Any]:
    """Engines spread over the nodes, in turn."""
    engines: list[Any] = []
    for number in range(count):
        remote = ray.remote(Receiver).options(
            num_cpus=0.5,
            num_gpus=device.gpu_count(NODES / count),
            scheduling_strategy=places[number % len(places)],
            max_concurrency=1,
            runtime_env={"env_vars": engine_environment(VllmEngineSettings())},
        )
        engines.append(remote.remote(policy, layout, seed + number, board))
    for number, engine in enumerate(engines):
        get_result(engine.ready.remote(), f"engine {number}", _START_S)
        print_note(f"engine {number} of {count} is there")
    return engines


def _measure(engines: list[Any], publication: _Publication, repeats: int, busy: bool) -> dict[str, Any]:
    rounds: list[dict[str, float]] = []
    for number in range(repeats + 1):
        figures: dict[str, float] = {}
        for side in in_turn(("bare", "published"), number):
            figures |= _bare(engines, publication) if side == "bare" else _publish(engines, publication, busy)
        figures["ratio"] = figures["seconds"] / figures["bare_load_s"]
        figures["ratio_fetch"] = figures["seconds"] / (figures["bare_fetch_s"] + figures["bare_load_s"])
        figures["ratio_memcpy"] = figures["seconds"] / figures["memcpy_s"]
        figures["ratio_pause"] = figures["pause_s"] / (figures["bare_load_s"] + figures["step_s"])
        rounds.append(figures)
    middle = {name: statistics.median(figures[name] for figures in rounds[1:]) for name in rounds[0]}
    row = {
        "engines": len(engines),
        "busy": busy,
        **middle,
        "s_per_gb": middle["seconds"] / (publication.nbytes / 1e9),
        "copies": publication.copies(),
    }
    print_note(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return row


def _bare(engines: list[Any], publication: _Publication) -> dict[str, float]:
    weights = ray.put(publication.packed())
    copied = [engine.copy.remote(weights) for engine in engines]
    for reference in copied:
        get_result(reference, "a copy in an engine's memory", _ACTIVE_S)
    del weights
    begin_s = time.monotonic() + _TOGETHER_S
    loading = [engine.bare_load.remote(begin_s) for engine in engines]
    load_s = max(get_result(reference, "the bare load", _ACTIVE_S) for reference in loading)
    fetch_s = publication.bare_fetch() if len(engines) > 1 else 0.0
    return {"bare_load_s": load_s, "bare_fetch_s": fetch_s, "memcpy_s": publication.memcpy()}


def _publish(engines: list[Any], publication: _Publication, busy: bool) -> dict[str, float]:
    weights = publication.packed()
    waiting = [engine.receive.remote(weights.version, busy) for engine in engines]
    time.sleep(0.5)  # all of them are at it
    started_s = time.monotonic()
    publication.publish(weights)
    times = [get_result(reference, "an engine", _ACTIVE_S) for reference in waiting]
    slowest = {name: max(own[name] for own in times) for name in times[0]}
    return {"seconds": slowest.pop("active_s") - started_s, **slowest}
