import asyncio
import dataclasses
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.exceptions import ObjectLostError

from sluice.actors.queue.actor import QueueActor
from sluice.actors.queue.client import QueueClient
from sluice.actors.queue.leases import Lease, Push
from sluice.actors.settings import QueueSettings
from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import RunError
from tests.ray.conftest import WAIT_S
from tests.rollout_fakes import examples

pytestmark = pytest.mark.ray


def record(*lease_ids: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"lease_id": list(lease_ids)})


def lease_ids(records) -> list[int]:
    return [one.column("lease_id")[0].as_py() for one in records]


class Producer:
    """A rollout actor without an engine."""

    def __init__(self, queue: QueueClient, name: str):
        self.holder = queue.holder(name, "1")

    def pid(self) -> int:
        return os.getpid()

    def lease(self, count: int) -> tuple[Lease, ...]:
        return self.holder.lease(count).result()

    def finish(self, leases, version: int = 0):
        records = record(*(lease.lease_id for lease in leases))
        pushes = self.holder.put(leases, records, [(version, version)] * len(leases))
        return self.holder.push(pushes).result()

    def produce(self, rounds: int, count: int) -> int:
        """Lease and finish until `rounds` leases were granted."""
        done = 0
        while done < rounds:
            leases = self.lease(count)
            if leases:
                reply = self.finish(leases)
                assert len(reply.accepted) == len(leases)
                done += 1
        return done


def wait_until_lost(reference) -> None:
    # A small object may be readable for a moment after its owner's death.
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=WAIT_S)
        except ObjectLostError:
            return
    raise AssertionError("the object outlived its owner")


@pytest.fixture
def start_queue(launch):
    def start(wait_s: float = WAIT_S, **bounds) -> QueueClient:
        settings = QueueSettings(**({"max_groups": 16, "max_mib": 1.0, "max_staleness": 1} | bounds))
        options = {"max_task_retries": -1, "max_concurrency": 1000}
        users, positions = examples(24)
        handle = launch(
            QueueActor,
            options,
            partial(Examples, users=users, positions=positions),
            seed=5,
            settings=settings,
        )
        return QueueClient(handle=handle, wait_s=wait_s, fetch_s=10.0)

    return start


def start_producer(launch, queue, name="a"):
    return launch(Producer, {"max_restarts": 0}, queue, name)


def test_a_group_goes_through_and_is_accounted_for(launch, start_queue):
    queue = start_queue()
    producer = start_producer(launch, queue)
    leases = ray.get(producer.lease.remote(4))
    ray.get(producer.finish.remote(leases))
    assert lease_ids(queue.pull(0, 0, 2, 2, 0)) == [0, 1]
    assert lease_ids(queue.pull(0, 1, 2, 2, 0)) == [2, 3]
    assert lease_ids(queue.pull(0, 1, 2, 2, 0)) == [2, 3]
    assert (queue.ack(0, 0), queue.ack(0, 1), queue.ack(0, 1)) == (2, 2, 0)
    assert queue.status().accounting == {"issued": 4, "trained": 4, "stale": 0, "invalid": 0, "in_flight": 0}


def test_a_pull_waits_for_groups_that_come_later(launch, start_queue):
    queue = start_queue()
    producer = start_producer(launch, queue)
    waiting = queue.handle.pull.remote(0, 0, 1, 4, 0, WAIT_S)
    ray.get(producer.produce.remote(1, 4))
    assert [group.lease_id for group in ray.get(waiting, timeout=WAIT_S)] == [0, 1, 2, 3]


def test_a_wait_that_runs_out_says_what_it_waited_for(launch, start_queue):
    queue = start_queue(wait_s=0.5)
    producer = start_producer(launch, queue)
    ray.get(producer.lease.remote(3))
    queue.note_error("rollout-1", "OutOfMemory: the engine died")
    with pytest.raises(RunError) as caught:
        queue.pull(3, 0, 1, 4, 0)
    for part in (
        "waited 0.5 s for 4 rollout groups of step 3",
        "0 are queued",
        "3 are with rollout actors {'a': 3}",
    ):
        assert part in str(caught.value)
    assert "rollout-1: OutOfMemory: the engine died" in str(caught.value)


def test_the_first_engine_has_as_long_as_any_other_from_when_it_asks(launch, start_queue):
    queue = dataclasses.replace(start_queue(wait_s=4.0), start_s=10 * WAIT_S)
    producer = start_producer(launch, queue)
    with ThreadPoolExecutor() as pool:
        pulled = pool.submit(queue.pull, 0, 0, 1, 4, 0)
        time.sleep(3.7)
        ray.get(producer.lease.remote(1))
        time.sleep(2.5)
        ray.get(producer.produce.remote(1, 4))
        assert len(pulled.result(timeout=WAIT_S)) == 4


def test_engines_that_are_still_loading_are_waited_for_longer(launch, start_queue):
    queue = dataclasses.replace(start_queue(wait_s=3.0), start_s=10 * WAIT_S)
    with ThreadPoolExecutor() as pool:
        pulled = pool.submit(queue.pull, 0, 0, 1, 4, 0)
        producer = start_producer(launch, queue)
        time.sleep(4.0)
        ray.get(producer.produce.remote(1, 4))
        assert len(pulled.result(timeout=WAIT_S)) == 4
    with pytest.raises(RunError, match=r"waited 3 s for 4 rollout groups of step 1"):
        queue.pull(1, 0, 1, 4, 0)


def test_a_rollout_side_that_gave_up_ends_the_wait_at_once(launch, start_queue):
    queue = start_queue()
    waiting = queue.handle.pull.remote(0, 0, 1, 4, 0, WAIT_S)
    queue.fail("rollout actor rollout-0 failed after 20 restart(s)")
    with pytest.raises(RunError, match="rollout-0 failed after 20"):
        ray.get(waiting, timeout=WAIT_S / 2)
    with pytest.raises(RunError, match="rollout-0 failed after 20"):
        queue.pull(0, 0, 1, 4, 0)


def test_the_bound_is_never_exceeded_under_many_producers(launch, start_queue):
    queue = start_queue(max_groups=10)
    producers = [start_producer(launch, queue, f"p{number}") for number in range(3)]
    for producer in producers:
        producer.produce.remote(1000, 3)  # more than is trained on
    trained = 0
    while trained < 60:
        assert len(queue.pull(trained // 5, 0, 1, 5, 0)) == 5
        status = queue.status()
        assert status.leased + status.queued <= 10
        assert status.issued == status.trained + status.stale + status.invalid + status.in_flight
        trained += queue.ack(trained // 5, 0)
    assert (queue.status().trained, queue.status().late) == (60, 0)


def test_stale_groups_are_dropped_and_counted(launch, start_queue):
    queue = start_queue()
    producer = start_producer(launch, queue)
    ray.get(producer.finish.remote(ray.get(producer.lease.remote(4)), 3))
    ray.get(producer.finish.remote(ray.get(producer.lease.remote(4)), 4))
    assert lease_ids(queue.pull(0, 0, 1, 4, 5)) == [4, 5, 6, 7]
    queue.ack(0, 0)
    assert queue.status().accounting == {"issued": 8, "trained": 4, "stale": 4, "invalid": 0, "in_flight": 0}


def test_groups_that_died_with_their_actor_are_replaced(launch, start_queue):
    queue = start_queue()
    doomed, survivor = start_producer(launch, queue, "doomed"), start_producer(launch, queue, "survivor")
    ray.get(doomed.finish.remote(ray.get(doomed.lease.remote(2))))
    ray.get(survivor.finish.remote(ray.get(survivor.lease.remote(2))))
    groups = ray.get(queue.handle.pull.remote(0, 0, 1, 4, 0, 0.0))
    assert [group.lease_id for group in groups] == [0, 1, 2, 3]
    os.kill(ray.get(doomed.pid.remote()), signal.SIGKILL)
    wait_until_lost(groups[0].reference)
    replacing = survivor.produce.remote(1, 2)
    records = queue.pull(
        0, 0, 1, 4, 0
    )  # nobody has revoked anything: the learner itself runs into the dead references
    ray.get(replacing, timeout=WAIT_S)
    assert len(records) == len(set(lease_ids(records))) == 4
    assert lease_ids(records)[:2] == [2, 3]
    queue.ack(0, 0)
    status = queue.status()
    assert status.trained == 4
    assert status.issued == status.trained + status.in_flight


def test_a_restored_queue_goes_on_where_the_snapshot_was_taken(launch, start_queue):
    queue = start_queue()
    producer = start_producer(launch, queue)
    ray.get(producer.produce.remote(1, 4))
    queue.pull(0, 0, 1, 4, 0)
    queue.ack(0, 0)
    held = ray.get(producer.lease.remote(2))
    snapshot = queue.snapshot()
    ray.get(producer.lease.remote(2))
    queue.restore(snapshot)
    assert queue.status().accounting == {"issued": 6, "trained": 4, "stale": 0, "invalid": 0, "in_flight": 2}
    assert ray.get(producer.finish.remote(held)).late == (4, 5)
    assert [lease.lease_id for lease in ray.get(producer.lease.remote(2))] == [4, 5]


def test_a_restarted_queue_gives_out_nothing_until_it_is_restored(launch, start_queue):
    queue = start_queue(wait_s=1.0)
    producer = start_producer(launch, queue)
    leases = ray.get(producer.lease.remote(2))
    snapshot = queue.snapshot()
    ray.kill(queue.handle, no_restart=False)
    deadline = time.monotonic() + WAIT_S
    while queue.status().restored:  # the kill is asynchronous
        assert time.monotonic() < deadline
    assert ray.get(queue.handle.lease.remote("a", "1", 2, 0.0)) == ()
    assert ray.get(producer.finish.remote(leases)).late == (0, 1)
    for refused in (lambda: queue.pull(0, 0, 1, 2, 0), queue.snapshot):
        with pytest.raises(RunError, match="restarted"):
            refused()
    queue.restore(snapshot)
    assert [lease.lease_id for lease in ray.get(producer.lease.remote(3))] == [0, 1, 2]


def test_a_push_without_room_waits_for_the_learner():
    async def scenario():
        users, positions = examples(24)
        actor = QueueActor(
            partial(Examples, users=users, positions=positions),
            seed=5,
            settings=QueueSettings(max_groups=8, max_mib=1.0),
        )
        leases = await actor.lease("a", "1", 3, 0)
        pushes = [
            Push(
                lease_id=one.lease_id, attempt=1, reference=None, nbytes=500_000, version_min=0, version_max=0
            )
            for one in leases
        ]
        reply = await actor.push("a", "1", pushes, 0)
        assert (reply.accepted, reply.full) == ((0, 1), (2,))
        waiting = asyncio.create_task(actor.push("a", "1", pushes[2:], WAIT_S))
        await asyncio.sleep(0)
        assert len(await actor.pull(0, 0, 1, 1, 0, 0)) == 1
        return await waiting

    assert asyncio.run(scenario()).accepted == (2,)


def test_arrays_of_examples_travel_to_the_actor(start_queue):
    queue = start_queue()
    first = ray.get(queue.handle.lease.remote("a", "1", 1, 0.0))[0]
    row = np.random.default_rng([5, 0]).permutation(24)[0]
    assert (first.user, first.position) == (row // 4, row % 4 + 1)


def test_a_stopped_actor_is_not_granted_the_lease_it_waited_for():
    async def scenario():
        users, positions = examples(24)
        actor = QueueActor(
            partial(Examples, users=users, positions=positions), seed=5, settings=QueueSettings(max_groups=4)
        )
        assert len(await actor.lease("a", "1", 4, 0)) == 4
        waiting = asyncio.create_task(actor.lease("a", "1", 4, WAIT_S))
        await asyncio.sleep(0)
        assert await actor.revoke("a", "", True) == 4
        return await waiting, (await actor.status()).leased, len(await actor.lease("b", "1", 4, 0))

    assert asyncio.run(scenario()) == ((), 0, 4)
