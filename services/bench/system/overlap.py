"""The loop with all its parts at work at once, against each part alone and against a loop that does one after
another.

Both sides train the same policy on MovieLens-100K, with real engines, the built-in ranker and the config's
gated objective, in steps of the same size, and publish new weights equally often. A row per policy: the
default one, with which learning is the longest part on one core each, and a small one, with which generating
is.

alone: a process that does one thing after another: generate a step's groups, score them, train on them, and
every
    `publish_every` steps load the new weights. Each part has the machine to itself; `loop_s` is a whole step
    of it.
beside: the same process while this one, pinned as in `async`, trains on one batch over and over. Nothing
passes between
    the two: what generation takes longer than alone is what the cores of the machine cost each other.
async: the actors of a run (`sluice.services.run.fleet`): rollout actor pinned to the first core, learner
(this process) and ranker
    to the second, where there are two. `step_s` is the time from step to step once the queue runs steadily.

ratio: async step over the longest of the parts alone, which no loop can beat. The parts alone are pinned to
one core as
    the actors are, so what is left is what waiting, the queue and the sharing of the second core cost.
ratio_beside: async step over the longer of generating beside and learning alone, so without what cores cost
each other.
    `ratio` and `idle` beside the rows are those of the first.
idle: shares of the time of each component that were waits (`sluice.learner.activity_clock`).
"""

import copy
import os
import statistics
import tempfile
import time
from typing import Any

import ray

from sluice.actors.calls import get_result
from sluice.actors.engines.engine import Engine, GenerateRequest, Generation
from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import Prompt, assemble_groups, read_prompt, score_groups
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.gaps import NO_GAPS
from sluice.catalog.rollout_group import encode_groups
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.environment import raise_gc_threshold
from sluice.learner.activity_clock import ActivityClock, idle_seconds
from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.batches.collate import collate_groups
from sluice.learner.batches.prefetch import Prefetched
from sluice.learner.batches.sources import QueueSource
from sluice.learner.policy.packed_weights import pack_weights
from sluice.learner.policy.policy import load_policy, move_model
from sluice.learner.ranker.contract import ask_ranker
from sluice.learner.ranker.load import open_ranker
from sluice.learner.training.loop_config import version_after
from sluice.learner.training.objective import build_objective
from sluice.learner.training.step import LearnerStep
from sluice.services.bench.harness import BenchOptions, in_turn, print_note
from sluice.services.bench.support import device
from sluice.services.bench.support.artefacts import make_artefacts
from sluice.services.bench.support.connection import bench_cluster
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_variables, open_engine
from sluice.services.run.fleet import Fleet, reserve_places, start_fleet

PARTS = ("generate", "rank", "learn", "load_weights")
SIDES = ("alone", "beside", "async")
POLICIES = {"default": {}, "small": {"hidden_size": 64, "layers": 2, "heads": 2, "feed_forward_size": 192}}
STEPS = 24  # of a round: longer than the two seconds after which an actor reports where its time went
WARM_STEPS = 12  # until the queue runs steadily and flow control has its measurements
_WAIT_S = 300.0


def run(options: BenchOptions) -> dict[str, Any]:
    """A row per policy; of the small one alone if quick."""
    with bench_cluster(num_cpus=4, include_dashboard=False):
        rows = [_row(name, options) for name in (("small",) if options.quick else POLICIES)]
    return {"ratio": rows[0]["ratio"], "idle": rows[0]["idle"], "rows": rows}


def _row(policy: str, options: BenchOptions) -> dict[str, Any]:
    """`repeats` rounds of all sides, in alternating order."""
    repeats = 3 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as directory:
        config = _config(directory, options.seed, POLICIES[policy])
        paths = make_artefacts(config)
        layout = load_policy(paths.policy).layout
        fleet = start_fleet(config, paths, layout, reserve_places(config))
        alone: Any = (
            ray.remote(OneAfterAnother)
            .options(
                num_cpus=0,
                num_gpus=config.rollout.gpus,
                runtime_env={"env_vars": engine_variables(config)},
            )
            .remote(config, paths)
        )
        try:
            return {"policy": policy, **_compare(config, paths, fleet, alone, repeats)}
        finally:
            ray.kill(alone)
            fleet.stop()


def pin_to_core(core: int) -> int:
    """Keep every thread of this process on one core, if the machine has more than one; the process's id."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {cores[core % len(cores)]})
    return os.getpid()


class OneAfterAnother:
    """The parts of the loop in one process and one thread."""

    def __init__(self, config: RunConfig, paths: RunPaths) -> None:
        self._config = config
        self._dataset = Dataset.open(paths.data)
        policy = load_policy(paths.policy)
        self._vocabulary = Vocabulary.of(self._dataset.codes, policy.layout)
        self._engine: Engine = open_engine(config, paths, self._vocabulary, config.seed)
        self._ranker = open_ranker(config.ranker, paths.ranker, lambda: self._dataset)
        self._learner = LearnerStep(
            move_model(policy.model, device.bench_device()),
            objective=build_objective(config.objective),
            settings=config.learner,
        )
        examples = self._dataset.examples(self._dataset.prompt_part)
        self._feed = PromptFeed(examples.users, examples.positions, seed=config.seed)
        self._step = self._version = 0
        raise_gc_threshold()  # as a rollout actor does

    def steps(self, count: int) -> dict[str, float]:
        """Seconds of each part and of the loop, per step."""
        pin_to_core(0)
        book = ActivityClock("other")
        for _ in range(count):
            self._run_step(book)
        seconds = book.seconds()
        return {name: seconds.get(name, 0.0) / count for name in PARTS} | {
            "loop": sum(seconds.values()) / count
        }

    def _run_step(self, book: ActivityClock) -> None:
        config, layout = self._config, self._vocabulary.layout
        prompts = [self._prompt(number) for number in range(config.learner.prompts_per_step)]
        with book.activity("generate"):
            self._engine.submit(
                [
                    GenerateRequest(
                        request_id=str(prompt.lease.lease_id),
                        prompt=layout.prompt(self._vocabulary.item_tokens, prompt.history),
                        excluded=prompt.excluded,
                    )
                    for prompt in prompts
                ]
            )
            done: dict[str, Generation] = {}
            while self._engine.in_flight:
                done |= {generation.request_id: generation for generation in self._engine.step()}
            generations = [done[str(prompt.lease.lease_id)] for prompt in prompts]
            drawn = assemble_groups(
                prompts,
                generations,
                [0.0] * len(prompts),
                vocabulary=self._vocabulary,
                distractors=config.rollout.distractors,
                seed=config.seed,
                draw=config.rollout.distractor_draw,
                shares=self._dataset.item_shares("fresh"),
            )
        with book.activity("rank"):
            users = drawn.examples.users
            output = ask_ranker(self._ranker, drawn.histories, drawn.items_to_score, users)
            groups = score_groups(drawn, output, ranker_version=self._ranker.version, score_s=0.0)
        with book.activity("learn"):
            rows = encode_groups(*groups)
            records = [rows.slice(row, 1) for row in range(len(groups))]
            self._learner.update(collate_groups(records, self._dataset, self._vocabulary, config.decoding))
            self._step += 1
        with book.activity("load_weights"):
            if self._step % config.weights.publish_every == 0:
                self._version += 1
                self._engine.load_weights(pack_weights(self._learner.model.named_parameters(), self._version))

    def _prompt(self, number: int) -> Prompt:
        user, position = self._feed.draw()
        lease = Lease(
            lease_id=self._step * self._config.learner.prompts_per_step + number,
            attempt=1,
            user=user,
            position=position,
        )
        return read_prompt(lease, self._dataset, NO_GAPS)


class AllAtOnce:
    """The learner of a run's actors, in this process."""

    def __init__(self, config: RunConfig, paths: RunPaths, fleet: Fleet, steps: int) -> None:
        """`steps` is how many there will be in all."""
        self._config, self._publisher = config, fleet.publisher
        policy, dataset = load_policy(paths.policy), Dataset.open(paths.data)
        source = QueueSource(
            fleet.queue,
            dataset,
            Vocabulary.of(dataset.codes, policy.layout),
            rank=0,
            world=1,
            share=config.learner.prompts_per_step,
            decoding=config.decoding,
        )
        self._learner, self._spare = (
            LearnerStep(
                move_model(model, device.bench_device()),
                objective=build_objective(config.objective),
                settings=config.learner,
            )
            for model in (policy.model, copy.deepcopy(policy.model))
        )
        self._batch: LoggedBatch | None = None  # the last one
        self._source = Prefetched(source, steps=steps, next_version=self._version_after)
        self._step = self._version = 0

    def steps(self, count: int) -> dict[str, Any]:
        """The median seconds from step to step, and where this process's time went."""
        book, seconds = ActivityClock("other"), []
        for _ in range(count):
            began_s = time.perf_counter()
            self._run_step(book)
            seconds.append(time.perf_counter() - began_s)
        return {"step_s": statistics.median(seconds), "time": book.seconds()}

    def train_until(self, answer: Any) -> Any:
        """Train another policy on the last batch over and over until the answer is there."""
        assert self._batch is not None
        while not ray.wait([answer], timeout=0)[0]:
            self._spare.update(self._batch)
        return get_result(answer, "the loop", _WAIT_S)

    def _run_step(self, book: ActivityClock) -> None:
        with book.activity("wait_batch"):
            batch, _ = self._source.next(self._step, self._version)
            self._batch = batch
        with book.activity("update"):
            self._learner.update(batch)
        with book.activity("acknowledge"):
            self._source.acknowledge(self._step)
        version, self._step = self._version_after(self._step, self._version), self._step + 1
        if version > self._version:
            with book.activity("publish"):
                self._publisher.publish(pack_weights(self._learner.model.named_parameters(), version))
        self._version = version

    def _version_after(self, step: int, version: int) -> int:
        return version_after(step, version, self._config.weights.publish_every)


def _compare(config: RunConfig, paths: RunPaths, fleet: Fleet, alone: Any, repeats: int) -> dict[str, Any]:
    for rollout in fleet.rollouts:
        get_result(rollout.started, "the engine", _WAIT_S)
        get_result(rollout.handle.__ray_call__.remote(lambda _: pin_to_core(0)), "the rollout actor", _WAIT_S)
    for ranker in fleet.rankers:
        get_result(ranker.__ray_call__.remote(lambda _: pin_to_core(1)), "the ranker", _WAIT_S)
    pin_to_core(1)
    fleet.begin(_WAIT_S)
    together = AllAtOnce(config, paths, fleet, WARM_STEPS + repeats * (WARM_STEPS + STEPS))
    together.steps(WARM_STEPS)
    get_result(alone.steps.remote(2), "the loop", _WAIT_S)
    rounds: list[dict[str, float]] = []
    waits: dict[str, list[float]] = {}
    for number in range(repeats):
        figures: dict[str, float] = {}
        for side in in_turn(SIDES, number):
            if side == "alone":
                figures |= get_result(alone.steps.remote(STEPS), "the loop", _WAIT_S)
                continue
            if side == "beside":
                figures["beside"] = together.train_until(alone.steps.remote(STEPS))["generate"]
                continue
            together.steps(WARM_STEPS)  # the queue has filled up meanwhile
            before = fleet.times()
            timed = together.steps(STEPS)
            figures["step_s"] = timed["step_s"]
            spent = {"learner": timed["time"]} | {
                name: {activity: s - before[name].get(activity, 0.0) for activity, s in seconds.items()}
                for name, seconds in fleet.times().items()
            }
            for name, seconds in spent.items():
                waits.setdefault(name, []).append(idle_seconds(seconds) / sum(seconds.values()))
        rounds.append(figures)
        print_note(
            f"round {number + 1} of {repeats}: async step {figures['step_s']:.3f} s, "
            f"loop {figures['loop']:.3f} s"
        )
    middle = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
    return {
        "prompts_per_step": config.learner.prompts_per_step,
        "candidates": config.rollout.decode.candidates,
        "alone_s": {name: round(middle[name], 4) for name in PARTS},
        "beside_s": {"generate": round(middle["beside"], 4)},
        "loop_s": round(middle["loop"], 4),
        "step_s": round(middle["step_s"], 4),
        "ratio": round(
            statistics.median(row["step_s"] / max(row[name] for name in PARTS) for row in rounds), 3
        ),
        "ratio_beside": round(
            statistics.median(row["step_s"] / max(row["beside"], row["learn"]) for row in rounds), 3
        ),
        "speedup": round(statistics.median(row["loop"] / row["step_s"] for row in rounds), 3),
        "idle": {name: round(statistics.median(shares), 3) for name, shares in waits.items()},
    }


def _config(directory: str, seed: int, policy: dict[str, int]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "overlap",
            "seed": seed,
            "output": directory,
            "policy": policy,
            "pretrain": {"epochs": 0},
            "ranker": {"ensemble": 1, "epochs": 1, "hidden_size": 64},
            "rollout": {"decode": {"candidates": 16}, "cpus": 0.5, "gpus": device.gpu_count(0.5)},
            "ranker_pool": {"cpus": 0.1},
            "learner": {"prompts_per_step": 32, "micro_batch_prompts": 8},
        }
    )
