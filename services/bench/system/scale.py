"""Weak scaling of the control plane: 4 to 256 rollout actors, each with the same simulated engine, and one
learner.

A Ray cluster of three nodes (`ray.cluster_utils`, one machine). Real are the queue actor, the weight board, a
ranker actor, the rollout actors with their workers and clients, the groups in the object stores of their
nodes, and the learner's calls: pull, ack, publish of packed weights. Simulated are
(`sluice.services.bench.system.scale_engine`) the log, the ranker's arithmetic, the optimizer step (time
passes) and the engines, which take time and no CPU. A rollout actor is a thread here and not a process, since
256 processes do not fit one machine: `HOSTS` processes share them, on two nodes.

An engine's time per group is measured on the tree engine first, then stretched to 1 / `RATE`, so that
everything around the engines of 256 actors fits on two cores: it takes 5 to 8 ms of CPU time per group, Ray
included. Leases are as large as by default (16 prompts, two of them in an engine), and the engines are at
different places of their first one when they begin, as those of a long run are. The queue's bound follows
Little's law: an actor has two leases in its engine, one before it and up to one more being scored or pushed,
and two steps may wait to be pulled. A lease takes a stretched engine as long as several weight versions, so
`queue.max_staleness` is raised until nothing is dropped.

Stretched engines have more patience than real ones: `efficiency` says whether the whole keeps step, the CPU
time per group how far it could go, and `queue_limit_groups_per_s` what one queue actor could do on a core of
its own.

A step takes what the engines make in `STEP_S`. In the rows with `limit: engines` the learner needs half of
that time for it; in the one with `limit: learner` a fourth more. A row's figures are medians of `repeats`
runs, one if quick; the rows take turns, every other time in reverse order.

groups_per_s: trained, over the measured steps. efficiency: of what the limit could do: `supply_groups_per_s`
(actors x
    `RATE`) or `learner_groups_per_s` (a step's groups over its train time, as if pull, ack and publish took
    none).
    engines_busy: groups that the engines made in that time over what they could make, below 1 where engines
        had no lease; a late step at either end of the eight moves groups_per_s, but not this.
*_cpu_ms_per_group: CPU time of the process (user and system, all threads) over the measured steps: the queue
actor,
    the ranker actor, the rollout actors' processes, the learner, and the controller, which watches the
    rollout actors as the fleet's supervisor does. board_cpu_ms_per_version: the weight board's. An idle
    actor's process costs `idle_cpu_ms_per_s` in Ray's own threads, which few actors with few groups do not
    spread over many; the `net` figures are without it.
publish_to_arrived_s: from the beginning of `publish` until every rollout actor has the weights; ..._active_s:
    until every engine has loaded them, which it does between two steps, a step being 1 / `RATE`. Medians and
    maxima over the row's versions.
pull_s: median of the learner's wait for a step's groups, their fetching included. Where the learner is the
limit they
    are queued already, so that it is the fetching.
machine_busy: share of the machine's CPU time that was not idle over the measured steps, other programs'
included.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from sluice.actors.boards.weight_board import WeightBoard, WeightPublisher, WeightSource
from sluice.actors.calls import get_result
from sluice.actors.queue.actor import QueueActor
from sluice.actors.queue.client import QueueClient
from sluice.actors.ranker.pool import RankerActor, RankerClient
from sluice.actors.rollout.actor import RolloutActor, RolloutClients
from sluice.actors.settings import RankerPoolSettings, RolloutSettings, WeightSettings
from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import RunError
from sluice.catalog.rollout_group import decode_group
from sluice.learner.policy.packed_weights import PackedWeights, UnverifiedWeights, pack_weights
from sluice.services.bench.harness import BenchOptions, in_turn, print_note
from sluice.services.bench.support.connection import bench_cluster, cluster_of
from sluice.services.bench.system.scale_engine import (
    HISTORY,
    USERS,
    EngineTimes,
    SimulatedEngine,
    SimulatedLog,
    SimulatedRanker,
    candidate_tokens,
    measure_engine,
    simulated_vocabulary,
    small_policy,
)
from sluice.services.bench.system.scale_rows import (
    MAX_STALENESS,
    RATE,
    STEP_S,
    Shape,
    check_accounting,
    median_row,
    summarise_rows,
)

ACTORS = (4, 16, 64, 256)
HOSTS = 4
WARM_STEPS = 4
STEPS = 8
_START_S = 120.0
_POLL_S = 0.5  # of the controller, as the fleet's supervisor
_WAIT_S = 60.0
_IDLE_S = 3.0
_CONTROL = {"num_cpus": 0, "resources": {"control": 0.01}}


def run(options: BenchOptions) -> dict[str, Any]:
    """A row per number of rollout actors with the engines as the limit, and one with the learner as the
    limit.
    """
    rollout, steps = RolloutSettings(), 4 if options.quick else STEPS
    shapes = [
        Shape(actors=n, train_s=STEP_S / 2, steps=steps) for n in ((4, 32) if options.quick else ACTORS)
    ]
    shapes.append(Shape(actors=shapes[-1].actors, train_s=STEP_S * 1.25, steps=steps))
    decoding = rollout.decode.decoding(exclude_seen=False)
    measured = measure_engine(rollout.prompts_per_lease, decoding, options.repeats, options.seed)
    print_note(
        f"an engine takes {1000 * measured.group_s:.2f} ms per group; stretched to {1000 / RATE:.0f} ms"
    )
    head = {"num_cpus": 2, "resources": {"control": 1}, "include_dashboard": False}
    hosts = {"num_cpus": HOSTS // 2, "resources": {"rollouts": HOSTS // 2}}
    with (
        cluster_of(head, hosts, hosts) as cluster,
        bench_cluster(cluster.address, {"OMP_NUM_THREADS": str(options.threads)}),
    ):
        times = EngineTimes(group_s=1 / RATE, load_s=measured.load_s)
        parts = _Parts(rollout, times, max(shape.actors for shape in shapes), options.seed)
        idle = parts.idle_cpu_ms_per_s()
        runs: list[list[dict[str, Any]]] = [[] for _ in shapes]
        for number in range(1 if options.quick else options.repeats):
            for shape, own_runs in in_turn(list(zip(shapes, runs, strict=True)), number):
                own_runs.append(parts.row(shape, idle))
        rows = [median_row(own_runs) for own_runs in runs]
    return {
        "rows": rows,
        "engine": {
            "measured_ms_per_group": round(1000 * measured.group_s, 3),
            "measured_load_ms": round(1000 * measured.load_s, 3),
            "simulated_ms_per_group": 1000 / RATE,
            "stretched_by": round(1 / RATE / measured.group_s, 1),
        },
        "idle_cpu_ms_per_s": round(idle, 2),
        "prompts_per_lease": rollout.prompts_per_lease,
        "leases_ahead": rollout.leases_ahead,
        "max_staleness": MAX_STALENESS,
        "publish_every": WeightSettings().publish_every,
        "nodes": 3,
        "rollout_processes": HOSTS,
    }


class Rollouts:
    """Many rollout actors in one process, a thread of it each."""

    def __init__(self, rollout: RolloutSettings, times: EngineTimes, seed: int) -> None:
        self._rollout, self._times, self._seed = rollout, times, seed
        self._known, self._log = simulated_vocabulary(seed), SimulatedLog(seed)
        self._candidates = candidate_tokens(self._known, rollout.decode.candidates, seed)
        self._live: dict[str, tuple[Any, SimulatedEngine, _TimedSource]] = {}  # Any: a RolloutActor

    def run(self, number: int, begun_s: float, queue: QueueClient, ranker: RankerClient, board: Any) -> None:
        """Be rollout actor `number` until `stop`; its engine has begun its first lease `begun_s` ago."""
        engine = SimulatedEngine(self._candidates, self._times, begun_s=begun_s)
        source = _TimedSource(board)
        actor = RolloutActor(
            name=f"rollout-{number}",
            engine_factory=lambda _: engine,
            dataset_factory=lambda: self._log,
            settings=self._rollout,
            seed=self._seed + number,
        )
        self._live[actor._name] = (actor, engine, source)
        actor.run(0.0, self._known, RolloutClients(queue=queue, ranker=ranker, weights=source))

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """End all of them."""
        for actor, _, _ in list(self._live.values()):
            actor.stop()

    @ray.method(concurrency_group="control")
    def loads(self) -> list[tuple[dict[int, float], dict[int, float]]]:
        """When each had a version's weights, and when its engine used them; forgets them."""
        times = [(source.arrived_s, engine.loaded_s) for _, engine, source in self._live.values()]
        self._live.clear()
        return times

    @ray.method(concurrency_group="control")
    def made(self) -> float:
        """Groups that all engines have made."""
        return sum(engine.made for _, engine, _ in list(self._live.values()))

    @ray.method(concurrency_group="control")
    def cpu_s(self) -> float:
        """CPU time of this process."""
        return time.process_time()


class Learner:
    """Stands for the learner: its calls are real, its optimizer steps are waits."""

    def __init__(self, seed: int) -> None:
        self._policy = small_policy(seed).model

    def run(
        self, queue: QueueClient, board: Any, shape: Shape, processes: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        """Warm up, then train `shape.steps` steps; what they took, and what the actors in `processes` did for
        them.
        """
        publisher, every = WeightPublisher(board), WeightSettings().publish_every
        version, began = publisher.latest_version(), dict[str, Any]()
        published: dict[int, float] = {}
        pulls: list[float] = []
        for step in range(WARM_STEPS + shape.steps):
            if step == WARM_STEPS:
                began = self._probe(queue, processes)
                pulls.clear()
            started_s = time.monotonic()
            groups = queue.pull(step, 0, 1, shape.groups_per_step, version)
            pulled_s = time.monotonic()
            pulls.append(pulled_s - started_s)
            if len({decode_group(group).lease_id for group in (groups[0], groups[-1])}) != 2:
                raise RunError(f"step {step} has the same group twice")
            time.sleep(max(0.0, pulled_s + shape.train_s - time.monotonic()))
            queue.ack(step, 0)
            if (step + 1) % every == 0:
                version += 1
                changed = (
                    (name, value.detach() + version * 1e-6) for name, value in self._policy.named_parameters()
                )
                weights = pack_weights(changed, version)
                published[version] = time.monotonic()
                publisher.publish(weights)
        ended = self._probe(queue, processes)
        return {"began": began, "ended": ended, "published": published, "pull_s": statistics.median(pulls)}

    def _probe(self, queue: QueueClient, processes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        calls = {name: [handle.cpu_s.remote() for handle in handles] for name, handles in processes.items()}
        cpu_s = {name: sum(get_result(call, name, _WAIT_S) for call in own) for name, own in calls.items()}
        cpu_s["learner"] = time.process_time()
        made = [get_result(host.made.remote(), "rollout", _WAIT_S) for host in processes["rollout"]]
        return {
            "at_s": time.monotonic(),
            "cpu_s": cpu_s,
            "made": sum(made),
            "machine": machine_ticks(),
            "status": queue.status(),
        }


class _TimedSource(WeightSource):
    """Remembers when each version was there."""

    def __init__(self, board: Any) -> None:
        super().__init__(board)
        self.arrived_s: dict[int, float] = {}

    def receive(self, arrived: PackedWeights) -> UnverifiedWeights:
        weights = super().receive(arrived)
        self.arrived_s[weights.version] = time.monotonic()
        return weights


class _Parts:
    """What lives through all rows: the rollout actors' processes, the learner, the ranker."""

    def __init__(self, rollout: RolloutSettings, times: EngineTimes, most: int, seed: int) -> None:
        self._rollout, self._seed, pool = rollout, seed, RankerPoolSettings()
        on_nodes: dict[str, Any] = {
            "num_cpus": 0,
            "resources": {"rollouts": 1},
            "max_concurrency": most // HOSTS + 1,
            "concurrency_groups": {"control": 2},
        }
        remote = ray.remote(**on_nodes)(Rollouts)
        self._hosts: list[Any] = [remote.remote(rollout, times, seed) for _ in range(HOSTS)]
        self._learner: Any = ray.remote(Learner).options(**_CONTROL).remote(seed)
        self._ranker: Any = (
            ray.remote(_metered(RankerActor))
            .options(**_CONTROL, max_concurrency=1000)
            .remote(SimulatedRanker, max_batch=pool.max_batch, max_wait_ms=pool.max_wait_ms)
        )
        self._ranker_client = RankerClient((self._ranker,), timeout_s=pool.timeout_s, attempts=pool.attempts)
        for host in self._hosts:
            get_result(host.cpu_s.remote(), "a process of rollout actors", _START_S)

    def idle_cpu_ms_per_s(self) -> float:
        """What the process of an actor costs that nobody calls."""
        before_s = get_result(self._ranker.cpu_s.remote(), "the ranker", _START_S)
        time.sleep(_IDLE_S)
        after_s = get_result(self._ranker.cpu_s.remote(), "the ranker", _WAIT_S)
        return 1000 * float(after_s - before_s) / _IDLE_S

    def row(self, shape: Shape, idle: float) -> dict[str, Any]:
        """Measure one shape, with a queue and a board of its own."""
        light = {**_CONTROL, "max_concurrency": 10_000}
        handle: Any = (
            ray.remote(_metered(QueueActor))
            .options(**light)
            .remote(partial(_prompts, 100_000), seed=self._seed, settings=shape.queue(self._rollout))
        )
        board: Any = ray.remote(_metered(WeightBoard)).options(**light).remote()
        get_result(board.cpu_s.remote(), "the weight board", _START_S)
        queue = QueueClient(handle, wait_s=_WAIT_S)
        lease_s = self._rollout.prompts_per_lease / RATE
        running = [
            self._hosts[number % HOSTS].run.remote(
                number, lease_s * number / shape.actors, queue, self._ranker_client, board
            )
            for number in range(shape.actors)
        ]
        processes = {"queue": [handle], "board": [board], "ranker": [self._ranker], "rollout": self._hosts}
        measured, controller = _control(self._learner.run.remote(queue, board, shape, processes), running)
        for host in self._hosts:
            get_result(host.stop.remote(), "a process of rollout actors", _WAIT_S)
        for ended in running:
            get_result(ended, "a rollout actor", _WAIT_S)
        status = queue.status()
        check_accounting(status, (WARM_STEPS + shape.steps) * shape.groups_per_step)
        loads = [
            times
            for host in self._hosts
            for times in get_result(host.loads.remote(), "a process of rollouts", _WAIT_S)
        ]
        for actor in (handle, board):
            ray.kill(actor)
        row = summarise_rows(shape, self._rollout, measured, controller, status, loads, idle)
        print_note(
            f"{shape.actors} rollout actors, limit {row['limit']}: {row['groups_per_s']} groups/s, "
            f"efficiency {row['efficiency']}, queue {row['queue_cpu_net_ms_per_group']} ms per group"
        )
        return row


def machine_ticks() -> tuple[int, int]:
    """CPU time of this machine since it started, (not idle, all); zeros where the system does not say."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _control(learning: Any, running: Sequence[Any]) -> tuple[dict[str, Any], float]:
    """Watch the rollout actors until the learner is done; its answer, and the CPU seconds per second of
    watching.
    """
    started_s, cpu_s = time.monotonic(), time.process_time()
    while True:
        ended, _ = ray.wait([learning, *running], timeout=_POLL_S)
        if learning in ended:
            share = (time.process_time() - cpu_s) / (time.monotonic() - started_s)
            return get_result(learning, "the learner", _WAIT_S), share
        for reference in ended:
            get_result(reference, "a rollout actor", _WAIT_S)
            raise RunError("a rollout actor ended though nobody had stopped it")


def _metered(kind: type[Any]) -> type[Any]:
    """An async actor class that also says what CPU time its process has used."""

    class Metered(kind):  # type: ignore[misc]  # a base class that is chosen when it runs
        async def cpu_s(self) -> float:
            return time.process_time()

    Metered.__name__ = kind.__name__
    return Metered


def _prompts(count: int) -> Examples:
    rows = np.arange(count, dtype=np.int32)
    return Examples(users=rows % USERS, positions=1 + rows // USERS % HISTORY)
