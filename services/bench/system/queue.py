"""Groups per second and latency through the rollout queue, by the number of producers and of consumers.

One queue actor on a Ray cluster of its own. Producers and consumers are simulated: the producers share one
process, the consumers another, each with a name and calls of its own, so what is measured is the queue actor
and its calls, not hundreds of idle processes. A producer leases `LEASE` prompts, pushes that many groups,
whose payload is one shared object, and begins again; the consumers are the ranks of one learner. The queue's
bound is the same for every row.

groups_per_s: producers push as fast as they may, so the queue is full all the time. p99_ms: from a group's
push to the arrival of the pull that allotted it, while all producers push `PACED` groups
    per second, which no row is slowed down by: a full queue's latency would only say how long the queue is.

The payloads travel by reference, so their size plays no part.
"""

import asyncio
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import ray

from sluice.actors.queue.actor import QueueActor
from sluice.actors.queue.leases import Lease, Push
from sluice.actors.settings import QueueSettings
from sluice.catalog.data.dataset import Examples
from sluice.services.bench.harness import BenchOptions, in_turn, print_note
from sluice.services.bench.support.connection import bench_cluster

LEASE = 16  # leases per call, and groups per push
SHARE = 16  # groups per consumer and step
PRODUCERS = (1, 10, 100, 1000)
CONSUMERS = (1, 8, 64)
SECONDS = 4.0
PACED = 400.0
MAX_GROUPS = 4096
GROUP_BYTES = 4096
_WAIT_S = 5.0
_END_S = 30.0


def run(options: BenchOptions) -> dict[str, Any]:
    """A row per number of producers (one consumer), and one per number of consumers (100 producers)."""
    repeats, seconds = (3, 1.0) if options.quick else (options.repeats, SECONDS)
    shapes = [(producers, 1) for producers in PRODUCERS] + [(100, consumers) for consumers in CONSUMERS[1:]]
    with bench_cluster(num_cpus=2, include_dashboard=False):
        measured: dict[tuple[int, int], list[dict[str, float]]] = {shape: [] for shape in shapes}
        for round_number in range(repeats):
            for shape in in_turn(shapes, round_number):
                full = asyncio.run(_measure(*shape, seconds, options.seed, paced=None))
                paced = asyncio.run(_measure(*shape, seconds, options.seed, paced=PACED))
                measured[shape].append({"groups_per_s": full["groups_per_s"], "p99_ms": paced["p99_ms"]})
            print_note(f"round {round_number + 1} of {repeats}")
    rows = [
        {"producers": producers, "consumers": consumers, **_median(figures)}
        for (producers, consumers), figures in measured.items()
    ]
    rates = {row["producers"]: row["groups_per_s"] for row in rows if row["consumers"] == 1}
    many = [rates[count] for count in PRODUCERS if count >= 10]
    return {
        "rows": rows,
        "groups_per_lease": LEASE,
        "paced_groups_per_s": PACED,
        "max_groups": MAX_GROUPS,
        "flatness": round(
            min(many) / max(many), 3
        ),  # the slowest of 10 to 1,000 producers against the fastest
    }


class Producers:
    """Many producers in one process."""

    def __init__(self, handle: Any, count: int, paced: float | None) -> None:
        self._handle, self._paced, self._count = handle, paced, count
        self._payload = ray.put(np.zeros(GROUP_BYTES, dtype=np.uint8))
        self._pushed_s: dict[int, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Let all of them work."""
        self._tasks = [asyncio.create_task(self._produce(number)) for number in range(self._count)]

    async def end(self) -> dict[int, float]:
        """Stop them; when each group was pushed, on the machine's monotonic clock."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return self._pushed_s

    async def _produce(self, number: int) -> None:
        name, handle = f"rollout-{number}", self._handle
        pause_s = self._count * LEASE / self._paced if self._paced else 0.0
        await asyncio.sleep(pause_s * number / self._count)
        while True:
            due_s = time.monotonic() + pause_s
            leases = await handle.lease.remote(name, "1", LEASE, _WAIT_S)
            if not leases:
                continue
            pushes = [self._group(lease) for lease in leases]
            now_s = time.monotonic()
            self._pushed_s.update((push.lease_id, now_s) for push in pushes)
            await handle.push.remote(name, "1", pushes, _WAIT_S)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    def _group(self, lease: Lease) -> Push:
        return Push(
            lease_id=lease.lease_id,
            attempt=lease.attempt,
            reference=self._payload,
            nbytes=GROUP_BYTES,
            version_min=0,
            version_max=0,
        )


async def _measure(
    producers: int, consumers: int, seconds: float, seed: int, *, paced: float | None
) -> dict[str, float]:
    settings = QueueSettings(max_groups=MAX_GROUPS, max_mib=1024.0, max_staleness=10**6, flow="full")
    light: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000}
    handle: Any = (
        ray.remote(QueueActor)
        .options(**light)
        .remote(partial(_prompts, 100_000), seed=seed, settings=settings)
    )
    made: Any = ray.remote(Producers).options(**light).remote(handle, producers, paced)
    await made.begin.remote()
    pulled_s: dict[int, float] = {}
    steps = await _consume(
        handle, consumers, seconds / 2, pulled_s, first=0
    )  # until the queue is in its steady state
    pulled_s.clear()
    started_s = time.monotonic()
    done = await _consume(handle, consumers, seconds, pulled_s, first=steps) - steps
    took_s = time.monotonic() - started_s
    pushed_s = await asyncio.wait_for(made.end.remote(), _END_S)
    for actor in (made, handle):
        ray.kill(actor)
    latencies = [at_s - pushed_s[lease_id] for lease_id, at_s in pulled_s.items()]
    return {
        "groups_per_s": done * consumers * SHARE / took_s,
        "p99_ms": 1000 * float(np.percentile(latencies, 99)),
    }


async def _consume(
    handle: Any, consumers: int, seconds: float, pulled_s: dict[int, float], *, first: int
) -> int:
    """Pull and acknowledge steps from `first` on with all ranks; the step after the last."""

    async def share(step: int, rank: int) -> None:
        groups = None
        while groups is None:
            groups = await handle.pull.remote(step, rank, consumers, SHARE, 0, _WAIT_S)
        now_s = time.monotonic()
        pulled_s.update((group.lease_id, now_s) for group in groups)
        await handle.ack.remote(step, rank)

    step, until_s = first, time.monotonic() + seconds
    while time.monotonic() < until_s or step == first:
        await asyncio.gather(*(share(step, rank) for rank in range(consumers)))
        step += 1
    return step


def _median(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in figures), 2) for name in figures[0]}


def _prompts(count: int) -> Examples:
    return Examples(users=np.arange(count, dtype=np.int32), positions=np.ones(count, dtype=np.int32))
