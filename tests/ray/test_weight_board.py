import os
import signal
import time
from dataclasses import replace

import pytest
import ray
import torch

from sluice.actors.boards.weight_board import WeightBoard, WeightPublisher, WeightSource
from sluice.catalog.errors import PolicyError, RunError
from sluice.learner.policy.packed_weights import PackedWeights, UnverifiedWeights, pack_weights
from tests.ray.conftest import WAIT_S

pytestmark = pytest.mark.ray


def weights(version: int) -> PackedWeights:
    # Large enough to lie in the shared object store instead of travelling inline.
    return pack_weights([("layer.weight", torch.full((300, 300), float(version)))], version)


class Learner:
    """Publishes from a process of its own."""

    def __init__(self, board):
        self.publisher = WeightPublisher(board)

    def publish(self, version: int) -> int:
        self.publisher.publish(weights(version))
        return os.getpid()


@pytest.fixture
def board(launch):
    return launch(WeightBoard, {"max_task_retries": -1, "max_concurrency": 1000})


def wait_for(source: WeightSource, current: int) -> UnverifiedWeights:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = source.poll(current)
        if found is not None:
            return found
    raise AssertionError("no weights came")


def test_weights_arrive_as_they_were_packed(board):
    source = WeightSource(board)
    assert source.poll(0) is None  # the board is empty, and poll does not wait
    publisher = WeightPublisher(board)
    assert publisher.latest_version() == 0
    publisher.publish(weights(3))
    with wait_for(source, 0).verifying() as found:
        name, tensor = next(iter(found.tensors()))
    assert (found.version, name, tensor[0, 0].item(), tensor.shape) == (3, "layer.weight", 3.0, (300, 300))
    assert publisher.latest_version() == 3


def test_damaged_weights_are_refused(board):
    damaged = weights(4)
    damaged.buffers["torch.float32"][100] ^= 1
    WeightPublisher(board).publish(damaged)
    for found in (wait_for(WeightSource(board), 0), WeightSource(board).newest(0, WAIT_S)):
        with (
            pytest.raises(PolicyError, match=r"version 4 arrived damaged: .*; damaged are layer\.weight"),
            found.verifying(),
        ):
            pass


def test_weights_with_a_damaged_manifest_are_not_handed_out(board):
    WeightPublisher(board).publish(replace(weights(4), manifest=()))
    with pytest.raises(PolicyError, match="version 4 arrived damaged: the manifest"):
        wait_for(WeightSource(board), 0)
    with pytest.raises(PolicyError, match="version 4 arrived damaged: the manifest"):
        WeightSource(board).newest(0, WAIT_S)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the policy is Linux's")
def test_who_waits_for_weights_and_verifies_them_gives_way_to_the_engine(board):
    class Watched(WeightSource):
        def receive(self, arrived):
            self.policy = os.sched_getscheduler(0)
            return super().receive(arrived)

    before = os.sched_getscheduler(0)  # which threads start with
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        source = Watched(board)
        WeightPublisher(board).publish(weights(1))
        wait_for(source, 0)
        assert (source.policy, os.sched_getscheduler(0)) == (os.SCHED_BATCH, os.SCHED_OTHER)
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


def test_a_source_sees_only_what_is_newer_and_the_newest_of_it(board):
    publisher, source = WeightPublisher(board), WeightSource(board)
    for version in (1, 2, 5):
        publisher.publish(weights(version))
    assert wait_for(source, 1).version == 5
    assert source.newest(5, WAIT_S) is None
    assert source.newest(4, WAIT_S).version == 5
    assert source.poll(5) is None
    publisher.publish(weights(6))
    assert wait_for(source, 5).version == 6
    status = ray.get(board.status.remote())
    assert (status.version, status.published, status.nbytes) == (6, 4, 300 * 300 * 4)


def test_versions_must_increase(board):
    publisher = WeightPublisher(board)
    publisher.publish(weights(2))
    with pytest.raises(RunError, match="version 2 was published after version 2"):
        publisher.publish(weights(2))
    with pytest.raises(RunError, match="version 0 was published after version 2"):
        publisher.publish(weights(0))
    assert publisher.latest_version() == 2


def test_weights_that_died_with_their_learner_are_passed_over(launch, board):
    learner = launch(Learner, {"max_restarts": 0}, board)
    pid = ray.get(learner.publish.remote(7))
    os.kill(pid, signal.SIGKILL)
    version, (reference,) = ray.get(board.latest.remote(0, 0.0))
    assert version == 7
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=WAIT_S)
        except ray.exceptions.ObjectLostError:
            break
    source = WeightSource(board)
    while source.lost == 0:
        assert source.poll(0) is None
        assert time.monotonic() < deadline
    WeightPublisher(board).publish(weights(8))
    assert wait_for(source, 0).version == 8
    assert source.lost == 1
