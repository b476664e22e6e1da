import os
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from sluice.actors.boards.catalogue_board import CatalogueBoard, CataloguePublisher, CatalogueSource
from sluice.actors.boards.weight_board import WeightBoard, WeightPublisher, WeightSource
from sluice.actors.queue.actor import QueueActor
from sluice.actors.queue.client import QueueClient
from sluice.actors.ranker.pool import RankerActor, RankerClient
from sluice.actors.rollout.actor import LAUNCH, RolloutActor, RolloutClients
from sluice.actors.settings import DecodeSettings, QueueSettings, RolloutSettings
from sluice.catalog.data.dataset import Examples
from sluice.catalog.rollout_group import decode_group
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.failure import decide_restart
from tests.ray.conftest import WAIT_S
from tests.rollout_fakes import CODES, LAYOUT, FakeEngine, RowRanker, TinyDataset, examples, weights_at

pytestmark = pytest.mark.ray

SETTINGS = RolloutSettings(
    decode=DecodeSettings(candidates=2), prompts_per_lease=4, leases_ahead=2, distractors=2
)


class ThenSound:
    """Makes one engine by `first`, then sound ones."""

    def __init__(self, first):
        self.makers = [first]

    def __call__(self):
        return (self.makers.pop() if self.makers else FakeEngine)()


class FirstTrieOnly(FakeEngine):
    """An engine without room for another catalogue."""

    def load_catalogue(self, vocabulary):
        raise MemoryError("no room for another trie")


class Watched(FakeEngine):
    """An engine that writes down which process and thread it computes in."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def step(self):
        self.file.write_text(f"{os.getpid()} {threading.get_native_id()}")
        return super().step()


def begin(parts, actor, catalogues=None):
    """The reference of the `run` that follows a `start`."""
    vocabulary = ray.put(Vocabulary.of(CODES, LAYOUT))
    return actor.run.remote(actor.start.remote(vocabulary), vocabulary, parts.clients(catalogues))


class Parts:
    """The rollout side of a run, with a fake engine."""

    def __init__(self, launch, prompts=24, **bounds):
        options = {"max_task_retries": -1, "max_concurrency": 1000}
        settings = QueueSettings(**({"max_groups": 16, "max_mib": 1.0, "max_staleness": 1} | bounds))
        users, positions = examples(prompts)
        queue = launch(
            QueueActor,
            options,
            partial(Examples, users=users, positions=positions),
            seed=5,
            settings=settings,
        )
        ranker = launch(RankerActor, {"max_concurrency": 1000}, RowRanker, max_batch=8, max_wait_ms=1.0)
        self.launch = launch
        self.board = launch(WeightBoard, options)
        self.queue = QueueClient(handle=queue, wait_s=WAIT_S, fetch_s=10.0)
        self.ranker = RankerClient((ranker,), timeout_s=WAIT_S, attempts=2)

    def clients(self, catalogues=None):
        weights = WeightSource(self.board)
        return RolloutClients(queue=self.queue, ranker=self.ranker, weights=weights, catalogues=catalogues)

    def rollout(self, name="rollout-0", factory=None, **engine):
        make = factory or partial(FakeEngine, **engine)
        return self.launch(
            RolloutActor,
            {"max_task_retries": 0} | LAUNCH,
            name=name,
            engine_factory=lambda _: make(),
            dataset_factory=TinyDataset,
            settings=SETTINGS,
            seed=11,
        )

    def until(self, **counts):
        """The queue's status once it has these counts."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            status = self.queue.status()
            if all(getattr(status, name) == count for name, count in counts.items()):
                return status
        raise AssertionError(f"never {counts}: {status}")

    @staticmethod
    def until_version(actor, version):
        """Returns once the actor has reported these weights."""
        deadline = time.monotonic() + WAIT_S
        while ray.get(actor.stats.remote()).version != version:
            assert time.monotonic() < deadline, f"never version {version}"
            time.sleep(0.05)


def train(queue, step, count, version=0):
    groups = [decode_group(record) for record in queue.pull(step, 0, 1, count, version)]
    assert queue.ack(step, 0) == count
    status = queue.status()
    assert status.issued == status.trained + status.stale + status.invalid + status.in_flight
    assert status.leased + status.queued <= status.max_groups
    return groups


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the policy is Linux's")
def test_only_the_thread_of_the_engine_keeps_its_priority(launch, tmp_path):
    parts = Parts(launch)
    actor = parts.rollout(factory=partial(Watched, tmp_path / "where"))
    running = begin(parts, actor)
    parts.until(queued=16)
    process, computing = map(int, (tmp_path / "where").read_text().split())
    policies = {
        int(task.name): os.sched_getscheduler(int(task.name))
        for task in Path(f"/proc/{process}/task").iterdir()
    }
    assert policies.pop(computing) == os.SCHED_OTHER
    batch = [thread for thread, policy in policies.items() if policy == os.SCHED_BATCH]
    assert process in batch  # Ray's own loop
    assert len(batch) > len(policies) / 2 > 5, policies  # others were started by the engine's thread since
    ray.get(actor.stop.remote())
    ray.get(running, timeout=WAIT_S)


def test_a_killed_rollout_actor_is_replaced_and_nothing_is_lost(launch, tmp_path):
    parts = Parts(launch)
    flag = tmp_path / "go-on"
    actor = parts.rollout(stall_after=8, stall_while=str(flag))
    running = begin(parts, actor)
    parts.until(queued=8, leased=8)  # half of it finished, the other half in the engine
    ray.kill(actor, no_restart=False)
    with pytest.raises(RayActorError) as caught:
        ray.get(running, timeout=WAIT_S)
    flag.touch()  # for the next one: this one would go on with it
    decision = decide_restart("rollout-0", restarts=0, bound=20, setting="bound", reason=str(caught.value))
    assert decision.restart
    assert parts.queue.revoke("rollout-0", decision.message) == 16
    running = begin(parts, actor)

    trained = {}
    for step in range(12):
        for group in train(parts.queue, step, 4):
            assert group.lease_id not in trained
            trained[group.lease_id] = (group.user, group.position)
        if set(range(24)) <= set(trained):
            break
    users, positions = examples(24)
    first_epoch = [trained[lease_id] for lease_id in range(24)]
    assert sorted(first_epoch) == list(zip(users.tolist(), positions.tolist(), strict=True))
    status = parts.queue.status()
    assert (status.stale, status.invalid, status.late, status.reissued) == (0, 0, 0, 16)
    assert status.trained == len(trained)
    assert "started again (1 of at most 20 times)" in status.last_error

    ray.get(actor.stop.remote(), timeout=WAIT_S)
    stats = ray.get(running, timeout=WAIT_S)
    assert (stats.late, stats.invalid, parts.queue.status().leased) == (0, 0, 0)


def test_a_failing_engine_ends_the_run_and_the_next_run_builds_another(launch):
    parts = Parts(launch)
    actor = parts.rollout(factory=ThenSound(partial(FakeEngine, fail_at=2)))
    with pytest.raises(RayTaskError, match="the engine ran out of memory"):
        ray.get(begin(parts, actor), timeout=WAIT_S)
    before = parts.queue.status()
    assert (
        parts.queue.revoke("rollout-0", "MemoryError: the engine ran out of memory")
        == before.leased + before.queued
    )
    assert "MemoryError" in parts.queue.status().last_error
    begin(parts, actor)
    assert len(train(parts.queue, 0, 4)) == 4


def test_damaged_weights_end_the_run_and_nothing_is_generated_with_them(launch):
    parts = Parts(launch)
    actor = parts.rollout()
    running = begin(parts, actor)
    parts.until(queued=16)
    damaged = weights_at(1)
    damaged.buffers["torch.float32"][3] ^= 1
    publisher = WeightPublisher(parts.board)
    publisher.publish(damaged)
    with pytest.raises(RayTaskError, match="weights version 1 arrived damaged"):
        ray.get(running, timeout=WAIT_S)
    assert parts.queue.status().queued == 16
    with pytest.raises(
        RayTaskError, match="weights version 1 arrived damaged"
    ):  # what an engine would start with
        ray.get(begin(parts, actor), timeout=WAIT_S)
    assert {group.version_min for group in train(parts.queue, 0, 16)} == {0}
    publisher.publish(weights_at(2))
    begin(parts, actor)
    parts.until_version(actor, 2)
    assert {group.version_min for group in train(parts.queue, 1, 4, version=2)} == {2}


def test_new_weights_reach_a_running_actor_and_older_groups_go_stale(launch):
    parts = Parts(launch, max_staleness=0)
    actor = parts.rollout()
    begin(parts, actor)
    parts.until(queued=16)
    publisher = WeightPublisher(parts.board)
    publisher.publish(weights_at(1))
    parts.until_version(actor, 1)  # else it may answer the room in the queue with more groups of version 0
    groups = train(parts.queue, 0, 4, version=1)
    assert {group.version_min for group in groups} == {1}
    status = parts.queue.status()
    assert (status.stale, status.trained) == (16, 4)

    late = parts.rollout(
        "rollout-1"
    )  # starts with the newest weights, not with those of its engine's directory
    begin(parts, late)
    parts.until_version(late, 1)


def test_an_engine_built_after_a_new_catalogue_arrived_starts_with_it(launch):
    parts, start = Parts(launch), Vocabulary.of(CODES, LAYOUT)
    board = launch(CatalogueBoard, {"max_task_retries": -1, "max_concurrency": 1000})
    actor = parts.rollout(factory=ThenSound(FirstTrieOnly))
    running = begin(parts, actor, CatalogueSource(board))
    parts.until(queued=16)
    CataloguePublisher(board, start).publish(start.changed(retire=np.array([1])))
    with pytest.raises(RayTaskError, match="no room for another trie"):
        ray.get(running, timeout=WAIT_S)
    assert parts.queue.revoke("rollout-0", "MemoryError") == 16
    begin(parts, actor, CatalogueSource(board))
    assert {group.catalogue_version for group in train(parts.queue, 0, 4)} == {1}


def test_several_actors_share_the_feed(launch):
    parts = Parts(launch)
    actors = [parts.rollout(f"rollout-{number}") for number in range(2)]
    running = [begin(parts, actor) for actor in actors]
    seen, deadline = [], time.monotonic() + WAIT_S
    while len(seen) < 64 or not all(
        one.groups for one in ray.get([actor.stats.remote() for actor in actors])
    ):
        assert time.monotonic() < deadline, f"one actor does all the work: {len(seen)} groups trained"
        seen += [group.lease_id for group in train(parts.queue, len(seen) // 8, 8)]
    assert len(seen) == len(set(seen))
    while sum(one.groups for one in ray.get([actor.stats.remote() for actor in actors])) < len(seen):
        assert time.monotonic() < deadline, "the queue's answers never came back to the actors"
        time.sleep(0.1)
    ray.get([actor.stop.remote() for actor in actors], timeout=WAIT_S)
    stats = ray.get(running, timeout=WAIT_S)
    assert sum(one.groups for one in stats) >= len(seen)
    assert sum(one.late + one.invalid for one in stats) == 0
