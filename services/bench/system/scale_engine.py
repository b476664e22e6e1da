"""What `sluice bench scale` simulates: an engine that takes a measured time and no CPU, a log, and a ranker.

Everything around them is the project's own: the worker that drives the engine, leases, groups, queue, boards.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from sluice.actors.engines.engine import GenerateRequest, Generation
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import PackedWeights, pack_weights
from sluice.learner.policy.policy import Policy, build_policy, save_policy
from sluice.learner.settings import PolicySettings

LEVEL_SIZES = (256, 256, 256)
ITEMS = 2000
HISTORY = 20
USERS = 1000


@dataclass(frozen=True, kw_only=True)
class EngineTimes:
    """What an engine takes."""

    group_s: float  # a prompt with its K candidates, in a batch of a lease's size
    load_s: float  # new weights


@dataclass(kw_only=True)
class _Running:
    request: GenerateRequest
    begins_s: float
    due_s: float
    version: int | None = None  # in use when it began, where that is another one than now


class SimulatedEngine:
    """Implements `sluice.actors.engines.engine.Engine`: one request after the other, each `times.group_s`
    long.

    A step waits for the request under way; requests keep their times however late the step is called, so
    whoever calls it late costs the engine nothing as long as further requests are there.
    """

    def __init__(
        self,
        candidates: Sequence[np.ndarray],
        times: EngineTimes,
        *,
        begun_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`candidates` are token ids [K, L], given in turn; the first requests count as submitted `begun_s`
        ago.
        """
        self._candidates, self._times, self._clock, self._sleep = candidates, times, clock, sleep
        self._log_probs = np.full(candidates[0].shape, -1.0, dtype=np.float32)
        self._begun_s, self._free_s = begun_s, -np.inf
        self._running: deque[_Running] = deque()
        self._answered = 0
        self.version = self.catalogue_version = 0
        self.loaded_s: dict[int, float] = {}  # version -> when it was in use

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet returned by `step`."""
        return len(self._running)

    @property
    def made(self) -> float:
        """Groups so far, with the part of each that is done."""
        now_s = self._clock()
        done = ((now_s - running.begins_s) / self._times.group_s for running in list(self._running))
        return self._answered + sum(min(1.0, max(0.0, part)) for part in done)

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        """Queue requests; returns at once."""
        now_s, self._begun_s = self._clock() - self._begun_s, 0.0
        for request in requests:
            begins_s = max(now_s, self._free_s)
            self._free_s = begins_s + self._times.group_s
            self._running.append(_Running(request=request, begins_s=begins_s, due_s=self._free_s))

    def step(self) -> list[Generation]:
        """Wait for the request under way; returns all that are due."""
        if not self._running:
            return []
        self._sleep(max(0.0, self._running[0].due_s - self._clock()))
        now_s, done = self._clock(), []
        while self._running and self._running[0].due_s <= now_s:
            done.append(self._generation(self._running.popleft()))
        return done

    def load_weights(self, weights: PackedWeights) -> float:
        """Pause for as long as a load takes; what has begun goes on afterwards and keeps its oldest
        version.
        """
        now_s, pause_s = self._clock(), self._times.load_s
        for running in self._running:
            if running.begins_s <= now_s and running.version is None:
                running.version = self.version
            running.begins_s, running.due_s = running.begins_s + pause_s, running.due_s + pause_s
        self._free_s += pause_s
        self._sleep(pause_s)
        self.version = weights.version
        self.loaded_s[self.version] = self._clock()
        return pause_s

    def forget(self) -> None:
        """It remembers no prompt."""

    def load_catalogue(self, vocabulary: Vocabulary) -> float:
        """Take a later version of the catalogue."""
        self.catalogue_version = vocabulary.version
        return 0.0

    def close(self) -> None:
        """Nothing to free."""

    def _generation(self, running: _Running) -> Generation:
        tokens = self._candidates[self._answered % len(self._candidates)]
        self._answered += 1
        return Generation(
            request_id=running.request.request_id,
            tokens=tokens,
            log_probs=self._log_probs,
            version_min=self.version if running.version is None else running.version,
            version_max=self.version,
            catalogue_version=self.catalogue_version,
        )


class SimulatedLog:
    """Users with random histories of `HISTORY` items each: what a worker asks of a data set."""

    def __init__(self, seed: int) -> None:
        self.settings = DataSettings(max_history=HISTORY)
        drawn = np.random.default_rng(seed).integers(0, ITEMS, (USERS, HISTORY + 1))
        self._items = drawn.astype(np.int32)

    def history(self, user: int, position: int, limit: int | None) -> np.ndarray:
        """Item rows before `position`."""
        return self._items[user, :position][-(limit or HISTORY) :]

    def seen(self, user: int, position: int) -> np.ndarray:
        """The same."""
        return self._items[user, :position]

    def target(self, user: int, position: int) -> int:
        """The item row at `position`."""
        return int(self._items[user, position])


class SimulatedRanker:
    """Scores an item by its row."""

    version = "simulated"

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """[B, C], NaN at padding."""
        return np.where(candidates < 0, np.nan, candidates).astype(np.float32)


def simulated_vocabulary(seed: int) -> Vocabulary:
    """`ITEMS` random distinct codes."""
    flat = np.random.default_rng(seed).choice(np.prod(LEVEL_SIZES), size=ITEMS, replace=False)
    return Vocabulary.of(
        np.stack(np.unravel_index(flat, LEVEL_SIZES), axis=1), TokenLayout.fresh(LEVEL_SIZES)
    )


def candidate_tokens(known: Vocabulary, count: int, seed: int) -> list[np.ndarray]:
    """Tokens [K, L] of random items, for 64 groups."""
    drawn = np.random.default_rng(seed).integers(0, ITEMS, (64, count))
    return list(known.item_tokens[drawn])


def small_policy(seed: int) -> Policy:
    """The policy whose weights travel."""
    return build_policy(PolicySettings(), LEVEL_SIZES, 1 + len(LEVEL_SIZES) * (HISTORY + 1), seed)


def measure_engine(prompts: int, decoding: Decoding, repeats: int, seed: int) -> EngineTimes:
    """What the tree engine takes here, on one thread: medians, after one warm-up."""
    from sluice.actors.engines.tree import TreeEngine

    known, log, policy = simulated_vocabulary(seed), SimulatedLog(seed), small_policy(seed)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        save_policy(policy, Path(directory))
        engine = TreeEngine(
            policy_dir=Path(directory),
            vocabulary=known,
            decoding=decoding,
            engine=TreeEngineSettings(prompts_per_step=prompts, prefix_cache_mib=0),
            seed=seed,
            max_prompt_tokens=1 + len(LEVEL_SIZES) * HISTORY,
        )
    steps, loads = [], []
    for number in range(repeats + 1):
        shift = {name: value.detach() + number * 1e-6 for name, value in policy.model.named_parameters()}
        loads.append(engine.load_weights(pack_weights(shift.items(), number + 1)))
        engine.submit(
            [
                GenerateRequest(
                    request_id=f"{number}-{user}",
                    prompt=known.layout.prompt(known.item_tokens, log.history(user, HISTORY, None)),
                    excluded=np.empty(0, dtype=np.int32),
                )
                for user in range(prompts)
            ]
        )
        started_s = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - started_s)
    engine.close()
    return EngineTimes(group_s=median(steps[1:]) / prompts, load_s=median(loads[1:]))
