"""Groups per second through the whole rollout service against a bare loop of vLLM's `LLM.generate`.

The service is what a run starts (`sluice.services.run.fleet`): the queue with its prompt feed, a rollout
actor with a vLLM engine, both boards, and a ranker actor whose ranker costs nothing; a consumer pulls and
acknowledges steps as the learner does. The bare loop is a process with a `vllm.LLM` of the same arguments,
and the same requests: the same prompts of MovieLens-100K in the same order, with the same seeds. All prompts
of a run are handed to it at once. The policy is untrained, so most of its candidates are no items.

The sides take turns: while the bare loop works the service waits with a full queue. The first rounds are not
counted: in them the engines still touch much of their memory for the first time. Both sides are started
several times, since of two engines that do the same one may be 3% slower than the other for as long as it
lives.

ratio: groups per second of the service over those of the bare loop; the median of `ratios`, all rounds' of
all starts. starts: the median of each start's rounds. groups_per_s: in the steady state, between two arrivals
of groups of one run. What was queued before the run began has
    been pulled by the first, and the bare loop has more prompts after the last. A bare loop spends time on
    its prompts before the first step too; each prompt's part of that (`bare_add`) counts.
ms_per_group: what one group took. `service_engine` is the part of the service's that was spent in engine
steps; the
    rest is the rollout actor's own work and waiting.
same_candidates: share of candidates that both sides drew alike; not all, since sums of floating-point numbers
depend on
    the batch.

On a GPU both engines share it, in bfloat16 (`sluice.services.bench.support.device`).
"""

import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from sluice.actors.calls import get_result
from sluice.actors.settings import DecodeSettings, QueueSettings, RolloutSettings
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import RunError
from sluice.catalog.rollout_group import decode_group
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.sources import open_prompts
from sluice.learner.policy.policy import load_policy
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.settings import PretrainSettings
from sluice.services.bench.harness import BenchOptions, in_turn, print_note
from sluice.services.bench.support import device
from sluice.services.bench.support.artefacts import make_artefacts
from sluice.services.bench.support.connection import bench_cluster
from sluice.services.bench.support.rollout_timing import Arrivals, Round, share_of_same, summarise_rounds
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_variables
from sluice.services.run.fleet import Fleet, reserve_places, start_fleet

STEP = 16  # groups of a consumer's step
STARTS = 3
WARM_ROUNDS = 3
LEAD = 64  # groups of a run between what was queued and what is timed
_LEAST_SAME = {"float32": 0.9, "bfloat16": 0.5}
_ANSWER_S = 600.0
_SETTLE_S = 120.0
_STATS_S = 2.5  # the rollout actor reports its counts every two seconds


def run(options: BenchOptions) -> dict[str, Any]:
    """`ratio`, and what it is made of."""
    timed, starts = (256, 1) if options.quick else (512, STARTS)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as scratch:
        config = _config(options, scratch)
        paths = make_artefacts(config)
        layout = load_policy(paths.policy).layout
        with bench_cluster(num_cpus=4, include_dashboard=False):
            compared = []
            for number in range(starts):
                print_note(f"start {number + 1} of {starts}")
                compared.append(
                    _compare(config, paths, layout, timed, math.ceil(options.repeats / starts), number)
                )
    rounds = [timed_round for own, _ in compared for timed_round in own]
    return {
        "K": config.rollout.decode.candidates,
        "prompts": timed,
        "starts": [summarise_rounds(own)["ratio"] for own, _ in compared],
        **summarise_rounds(rounds),
        "same_candidates": min(same for _, same in compared),
    }


class StubRanker:
    """A ranker whose scores cost nothing."""

    version = "stub"

    def __init__(self, dataset: Dataset) -> None:
        del dataset

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """The item rows."""
        del histories
        return np.where(candidates < 0, np.nan, candidates).astype(np.float32)


class Bare:
    """The bare loop as an actor."""

    def __init__(self, config: RunConfig, paths: RunPaths, layout: TokenLayout) -> None:
        from sluice.services.bench.engines.vllm_bare import BareLoop

        self._dataset = Dataset.open(paths.data)
        self._vocabulary = Vocabulary.of(self._dataset.codes, layout)
        examples = open_prompts(paths.data, config.learner.prompts_per_user)
        feed = PromptFeed(examples.users, examples.positions, seed=config.seed)
        self._order = [feed.draw() for _ in range(len(examples))]
        self._limit = self._dataset.settings.max_history
        longest = 1 + self._limit * layout.levels
        self._loop = BareLoop(paths.policy, self._vocabulary, config.rollout, config.seed, longest)

    def generate(self, first: int, count: int) -> tuple[float, Arrivals, dict[int, np.ndarray]]:
        """The groups of `count` prompts of the feed from number `first` on, as `BareLoop.generate`."""
        numbers = range(first, first + count)
        prompts = {f"{number}-1": self._prompt(*self._order[number]) for number in numbers}
        add_s, arrivals, tokens = self._loop.generate(prompts)
        return add_s, arrivals, dict(zip(numbers, tokens, strict=True))

    def _prompt(self, user: int, position: int) -> np.ndarray:
        history = self._dataset.history(user, position, self._limit)
        return self._vocabulary.layout.prompt(self._vocabulary.item_tokens, history)


class _Service:
    """The service's side of the rounds."""

    def __init__(self, fleet: Fleet, ahead: int) -> None:
        """`ahead` groups wait in a full queue."""
        self._fleet, self._ahead = fleet, ahead
        self._step = 0

    def generate(self, count: int) -> tuple[float, Arrivals, dict[int, np.ndarray]]:
        """Pull `count` groups as fast as they come, and let the queue fill up again: the seconds per group in
        engine steps, when the groups came, and their tokens by lease id.
        """
        before, arrivals, records = self._stats(), Arrivals(), []
        for _ in range(count // STEP):
            records += self._fleet.queue.pull(self._step, 0, 1, STEP, 0)
            arrivals.note(STEP, time.monotonic())
            self._fleet.queue.ack(self._step, 0)
            self._step += 1
        self.settle()
        after = self._stats()
        if after["invalid"] or after["late"]:
            raise RunError(f"{after['invalid']} groups were invalid and {after['late']} late; none should be")
        groups = [decode_group(record) for record in records]
        engine_s = (after["generate"] - before["generate"]) / (after["groups"] - before["groups"])
        return engine_s, arrivals, {group.lease_id: group.candidate_tokens for group in groups}

    def settle(self) -> None:
        """Wait until the queue is full and the rollout actor idle."""
        until_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < until_s:
            status = self._fleet.queue.status()
            if status.queued == self._ahead and not status.leased:
                time.sleep(_STATS_S)
                return
            time.sleep(0.1)
        raise RunError(f"the queue was not full after {_SETTLE_S:g} s: {self._fleet.queue.status()}")

    def _stats(self) -> dict[str, Any]:
        return self._fleet.stats()["rollout-0"] | self._fleet.times()["rollout-0"]


def _config(options: BenchOptions, output: str) -> RunConfig:
    sizes = {"hidden_size": 64, "layers": 2, "heads": 2, "feed_forward_size": 192} if options.quick else {}
    return RunConfig(
        name="bench",
        seed=options.seed,
        output=output,
        policy=device.policy_settings(**sizes),
        pretrain=PretrainSettings(epochs=0),
        ranker=RankerSettings(use=f"{__name__}:StubRanker"),
        rollout=RolloutSettings(
            decode=DecodeSettings(candidates=16, constrained=False),  # as the bare loop
            engine=device.vllm_settings(options.threads),
            gpus=device.gpu_count(0.5),
        ),
        queue=QueueSettings(max_groups=128, flow="full"),
    )


def _compare(
    config: RunConfig, paths: RunPaths, layout: TokenLayout, timed: int, repeats: int, start: int
) -> tuple[list[Round], float]:
    """Start both sides; the rounds that count, and the least share of same candidates in a round.

    Every other round one side is first, and every other start it is the other that begins.
    """
    rollout = config.rollout
    environment = {"env_vars": engine_variables(config)}
    bare: Any = (
        ray.remote(Bare)
        .options(num_cpus=1, num_gpus=rollout.gpus, runtime_env=environment)
        .remote(config, paths, layout)
    )
    fleet = start_fleet(config, paths, layout, reserve_places(config))
    try:
        fleet.begin(config.cluster.start_timeout_s)
        service = _Service(fleet, config.queue.max_groups)
        service.settle()
        print_note("the service is there")
        first = config.queue.max_groups + LEAD
        rounds, same = [], []
        for number in range(WARM_ROUNDS + repeats):
            sides = in_turn(("service", "bare"), start + number)
            seconds, share = _round(number, sides, service, bare, rollout, first, first + timed)
            counted = (
                f"round {number + 1 - WARM_ROUNDS} of {repeats}" if number >= WARM_ROUNDS else "warming up"
            )
            print_note(f"{counted}: {1 / seconds.service_s:.1f} groups/s, bare {1 / seconds.bare_s:.1f}")
            rounds.append(seconds)
            same.append(share)
    finally:
        ray.kill(bare)
        fleet.stop()
    if min(same) < _LEAST_SAME[rollout.engine.dtype]:
        raise RunError(
            f"only {min(same):.0%} of the candidates are the same on both sides: they do not do the same"
        )
    return rounds[WARM_ROUNDS:], min(same)


def _round(
    number: int,
    sides: Sequence[str],
    service: _Service,
    bare: Any,
    rollout: RolloutSettings,
    first: int,
    last: int,
) -> tuple[Round, float]:
    """Both sides once, one after the other, about the same prompts."""
    more = rollout.prompts_per_lease * rollout.leases_ahead  # keep the bare engine full to the last
    generated: dict[str, tuple[float, Arrivals, dict[int, np.ndarray]]] = {}
    for side in sides:
        if side == "service":
            generated[side] = service.generate(last)
        else:
            generated[side] = get_result(
                bare.generate.remote(number * last, last + more), "the bare loop", _ANSWER_S
            )
    engine_s, ours, our_tokens = generated["service"]
    add_s, theirs, their_tokens = generated["bare"]
    add_s /= last + more
    seconds = Round(
        service_s=ours.seconds_per_group(first, last),
        engine_s=engine_s,
        bare_s=theirs.seconds_per_group(first, last) + add_s,
        bare_add_s=add_s,
    )
    return seconds, share_of_same(our_tokens, their_tokens)
