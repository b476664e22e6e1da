"""The tree engine against the vLLM engine, both behind `sluice.actors.engines.engine.Engine`, on the same
prompts: samples and beams.

vLLM reads its environment when it is imported, so each engine lives in a process of its own; the two are told
in turn to generate, and one waits while the other works. Every run has prompts of its own, the same for both,
so that no prefix cache answers for an earlier run. Both processes are set up as a rollout actor's
(`sluice.cluster.environment`). Both generate some times before anything is timed, as their memory still
grows: the tree engine's until its prefix cache is full. Then the two sets of candidates are compared: the
log-probs that both gave to a same prefix, and of samples the frequencies of first tokens by a chi-square
test, of exact beams the log-probs of all.

Histories have 160 tokens each (`equal`), or 160 in the mean and any number from 79 to 238 (`mixed`). 160 is
what costs vLLM most: a candidate shares the full cache blocks of its prompt but for the last, so of a prompt
that fills its blocks it computes a whole one of 32 tokens anew, and half of one in the mean.

On a GPU the policy is larger, the prompts are 64, and both engines compute in bfloat16
(`sluice.services.bench.support.device`).

The tree engine computes candidates that agree so far once, so its rate depends on how sharp the policy is;
`distinct` says how many of the K first tokens of a prompt differ.
"""

import itertools
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.stats import chi2_contingency

from sluice.actors.engines.engine import GenerateRequest, Generation
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import RunError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.environment import ALLOCATOR, raise_gc_threshold
from sluice.learner.policy.policy import save_policy
from sluice.services.bench.engines.beam import random_catalogue, random_histories, sharp_policy
from sluice.services.bench.harness import BenchOptions, median_seconds, print_note, time_alternately
from sluice.services.bench.support import device

if TYPE_CHECKING:
    from sluice.actors.engines.tree import TreeEngine
    from sluice.actors.engines.vllm.engine import VllmEngine

Kind = Literal["sample", "beam", "stochastic_beam"]
SAMPLE: Kind = "sample"
# lengths of the histories, kind, K, constrained
ROWS: tuple[tuple[str, Kind, int, bool], ...] = (
    *itertools.product(("equal", "mixed"), (SAMPLE,), (16, 64), (False, True)),
    ("mixed", "beam", 16, True),
    ("mixed", "stochastic_beam", 16, True),
)
_NATS = {"float32": 1e-3, "bfloat16": 0.5}  # between the engines, on one token
_LEAST_P = 1e-4
_WARM_UPS = 20  # with each kind of lengths
_ANSWER_S = 300.0  # for an engine to start, or to generate once


def run(options: BenchOptions) -> dict[str, Any]:
    """`rows[]` with lengths, kind, K, constrained, speedup and prompts per second of both engines."""
    prompts, history, items = (8, 20, 2000) if options.quick else (64 if device.on_gpu() else 32, 53, 12000)
    rows = []
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as scratch:
        policy_dir = Path(scratch) / "policy"
        save_policy(sharp_policy(options.seed), policy_dir)
        setting = (policy_dir, prompts, history, items, options.threads, options.seed)
        engines = {name: _Remote(name, setting) for name in ("tree", "vllm")}
        try:
            for lengths, engine in itertools.product(("equal", "mixed"), engines.values()):
                for _ in range(_WARM_UPS):
                    engine.generate(lengths, Decoding(candidates=16))
            for lengths, kind, candidates, constrained in ROWS:
                decoding = Decoding(kind=kind, candidates=candidates, constrained=constrained)
                rows.append({"lengths": lengths, **_compare(engines, prompts, lengths, decoding, options)})
        finally:
            for engine in engines.values():
                engine.end()
    return {"prompts": prompts, "mean_history_tokens": 1 + 3 * history, "items": items, "rows": rows}


def _compare(
    engines: "dict[str, _Remote]", prompts: int, lengths: str, decoding: Decoding, options: BenchOptions
) -> dict[str, Any]:
    tolerance = _NATS[device.policy_dtype()]
    what = (
        f"{lengths} lengths, {decoding.kind}, K={decoding.candidates}, "
        f"{'trie' if decoding.constrained else 'free'}"
    )
    ours, theirs = (engine.generate(lengths, decoding) for engine in engines.values())
    _check_equal(what, decoding.kind, ours, theirs, tolerance)
    sides = {
        name: (lambda engine=engine: engine.generate(lengths, decoding)) for name, engine in engines.items()
    }
    seconds = median_seconds(time_alternately(sides, options.repeats))
    rate = {name: prompts / value for name, value in seconds.items()}
    print_note(f"{what}: " + ", ".join(f"{name} {value:.1f} prompts/s" for name, value in rate.items()))
    return {
        "kind": decoding.kind,
        "K": decoding.candidates,
        "constrained": decoding.constrained,
        "speedup": rate["tree"] / rate["vllm"],
        "distinct": float(
            np.mean([len(np.unique(group.tokens[:, 0])) / decoding.candidates for group in ours])
        ),
        "tree_prompts_per_s": rate["tree"],
        "vllm_prompts_per_s": rate["vllm"],
    }


def _check_equal(
    what: str,
    kind: str,
    ours: list[Generation],
    theirs: list[Generation],
    tolerance: float = _NATS["float32"],
) -> None:
    """Raises RunError when the engines cannot have drawn from the same distributions, or found the same
    beams.
    """
    shared = 0
    first: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for pair in zip(ours, theirs, strict=True):
        known: dict[tuple[int, ...], float] = {}
        for side, group in enumerate(pair):
            first[side].append(group.tokens[:, 0])
            for tokens, log_probs in zip(group.tokens.tolist(), group.log_probs.tolist(), strict=True):
                for level, log_prob in enumerate(log_probs):
                    before = known.setdefault(tuple(tokens[: level + 1]), log_prob)
                    shared += side and before is not log_prob
                    if abs(before - log_prob) > tolerance:
                        raise RunError(
                            f"{what}: the engines differ by {abs(before - log_prob):.2g} nats on one token"
                        )
    if kind == "beam":
        totals = [np.sort([group.log_probs.sum(axis=1) for group in side], axis=1) for side in (ours, theirs)]
        if (apart := np.abs(totals[0] - totals[1]).max()) > tolerance:
            raise RunError(f"{what}: the beams of the engines differ by {apart:.2g} nats")
        return
    counts = np.stack([np.bincount(np.concatenate(side), minlength=1024) for side in first])
    common = counts.sum(axis=0) >= 20
    table = np.concatenate([counts[:, common], counts[:, ~common].sum(axis=1, keepdims=True)], axis=1)
    p = chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue
    if p < _LEAST_P or not shared:
        raise RunError(
            f"{what}: first tokens of the two engines differ (p = {p:.2g}, {shared} prefixes in common)"
        )


class _Remote:
    """An engine in a process of its own, which answers one question at a time."""

    def __init__(self, kind: str, setting: tuple[Any, ...]) -> None:
        self._number = 0
        self._pipe, theirs = multiprocessing.Pipe()
        environment = dict(ALLOCATOR)
        if kind == "vllm":
            environment |= engine_environment(device.vllm_settings(setting[4]))
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)  # a spawned process starts with the environment of now
        try:
            self._process = multiprocessing.get_context("spawn").Process(
                target=_serve, args=(theirs, kind, setting)
            )
            self._process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()
        print_note(f"{kind} engine ready after {self._answer():.0f} s")

    def generate(self, lengths: str, decoding: Decoding) -> list[Generation]:
        """Candidates of the prompts of this call; the n-th call is about the same prompts with every
        engine.
        """
        self._number += 1
        self._pipe.send((self._number, lengths, decoding))
        generations: list[Generation] = self._answer()
        return generations

    def end(self) -> None:
        """Let the process close its engine and end."""
        self._pipe.send(None)
        self._process.join(timeout=_ANSWER_S)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self) -> Any:
        if not self._pipe.poll(_ANSWER_S):
            raise RunError(f"an engine of the bench gave no answer within {_ANSWER_S:.0f} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RunError("an engine of the bench died; its process has printed why") from None


def _serve(pipe: Connection, kind: str, setting: tuple[Any, ...]) -> None:
    """The engine's process."""
    started_s = time.perf_counter()
    policy_dir, prompts, history, items, threads, seed = setting
    vocabulary = random_catalogue(items, seed)
    engine = _open(kind, policy_dir, vocabulary, 1 + 3 * longest_prompt(history), prompts, threads, seed)
    raise_gc_threshold()
    pipe.send(time.perf_counter() - started_s)
    while (question := pipe.recv()) is not None:
        number, lengths, decoding = question
        requests = [
            GenerateRequest(request_id=f"{number}-{row}", prompt=tokens, excluded=np.empty(0, dtype=np.int32))
            for row, tokens in enumerate(draw_histories(vocabulary, prompts, history, lengths, seed + number))
        ]
        engine.submit(requests, decoding)
        done: dict[str, Generation] = {}
        while engine.in_flight:
            done |= {generation.request_id: generation for generation in engine.step()}
        pipe.send([done[request.request_id] for request in requests])
    engine.close()


def longest_prompt(history: int) -> int:
    """Items of the longest history where `history` is the mean."""
    return history + history // 2


def draw_histories(
    vocabulary: Vocabulary, prompts: int, history: int, lengths: str, seed: int
) -> list[np.ndarray]:
    """Tokens of random histories of `history` items each, or of a half to one and a half times as many."""
    rows = random_histories(vocabulary, prompts, longest_prompt(history), seed).numpy()
    items = np.full(prompts, history)
    if lengths == "mixed":
        items = np.random.default_rng(seed).integers(
            history - history // 2, longest_prompt(history) + 1, prompts
        )
    return [row[: 1 + 3 * count] for row, count in zip(rows, items, strict=True)]


def _open(
    kind: str,
    policy_dir: Path,
    vocabulary: Vocabulary,
    prompt_tokens: int,
    prompts: int,
    threads: int,
    seed: int,
) -> "TreeEngine | VllmEngine":
    decoding = Decoding(candidates=64)
    torch.set_num_threads(threads)
    if kind == "tree":
        from sluice.actors.engines.tree import TreeEngine

        return TreeEngine(
            policy_dir=policy_dir,
            vocabulary=vocabulary,
            decoding=decoding,
            engine=device.tree_settings(threads, prompts_per_step=prompts),
            seed=seed,
            max_prompt_tokens=prompt_tokens,
        )
    from sluice.actors.engines.vllm.engine import VllmEngine

    return VllmEngine(
        policy_dir=policy_dir,
        vocabulary=vocabulary,
        decoding=decoding,
        engine=device.vllm_settings(threads),
        seed=seed,
        max_prompt_tokens=prompt_tokens,
        prompts_in_flight=prompts,
    )
