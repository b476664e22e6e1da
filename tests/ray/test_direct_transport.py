"""Weights by Ray Direct Transport, with a transport through files that Ray drives as it does NIXL, and with
NIXL itself where it is installed (it needs no GPU: it reads from memory over TCP).
"""

import contextlib
import importlib.util
import os
import signal
import time
from dataclasses import replace

import pytest
import ray
import torch
from ray.experimental.rdt.util import register_tensor_transport

from sluice.actors.boards.weight_board import WeightBoard, WeightPublisher, WeightSource
from sluice.catalog.errors import RunError
from sluice.learner.policy.packed_weights import PackedWeights, pack_weights
from tests.ray import file_transport
from tests.ray.conftest import WAIT_S

pytestmark = pytest.mark.ray

with contextlib.suppress(ValueError):  # registered already
    # Ray tells every actor that this process creates from now on.
    register_tensor_transport(file_transport.NAME, ["cpu"], file_transport.FileTransport, torch.Tensor)

TRANSPORTS = [file_transport.NAME] + (["nixl"] if importlib.util.find_spec("nixl") else [])


def weights(version: int) -> PackedWeights:
    return pack_weights(
        [
            ("first", torch.full((300, 300), float(version))),
            ("second", torch.arange(7.0).bfloat16() + version),
        ],
        version,
    )


class Learner:
    def __init__(self, board, transport: str):
        self.publisher = WeightPublisher(board, transport=transport)

    def publish(self, version: int) -> int:
        self.publisher.publish(weights(version))
        return os.getpid()

    def publish_damaged(self, version: int) -> None:
        damaged = weights(version)
        damaged.buffers["torch.float32"][100] ^= 1
        self.publisher.publish(damaged)


class Engine:
    """A rollout actor's side of the board."""

    def __init__(self, board):
        self.source = WeightSource(board)

    def wait(self, current: int) -> tuple[int, dict[str, torch.Tensor], int]:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = self.source.poll(current)
            if found is not None:
                with found.verifying() as weights:
                    return (
                        found.version,
                        {name: value.clone() for name, value in weights.tensors()},
                        self.source.lost,
                    )
            time.sleep(0.01)
        raise AssertionError("no weights came")

    def newest(self, current: int) -> int:
        with self.source.newest(current, WAIT_S).verifying() as weights:
            return weights.version

    def wait_for_loss(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while not self.source.lost and time.monotonic() < deadline:
            assert self.source.poll(0) is None
            time.sleep(0.01)
        return self.source.lost


@pytest.fixture
def board(launch):
    return launch(WeightBoard, {"max_task_retries": -1, "max_concurrency": 1000})


def ask(reference):
    return ray.get(reference, timeout=2 * WAIT_S)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_actor_gets_the_weights_as_they_were_packed(launch, board, transport):
    learner = launch(Learner, {}, board, transport)
    engines = [launch(Engine, {}, board) for _ in range(2)]
    for version in (3, 4):
        ask(learner.publish.remote(version))
        packed = dict(weights(version).tensors())
        for engine in engines:
            found, tensors, _ = ask(engine.wait.remote(version - 1))
            assert found == version
            assert tensors.keys() == packed.keys()
            for name, value in packed.items():
                assert value.dtype == tensors[name].dtype
                assert torch.equal(value, tensors[name])
    assert ask(engines[0].newest.remote(3)) == 4
    # No copy in the object store: what lies there is the small rest of the object.
    _, (reference,) = ask(board.latest.remote(0, 0.0))
    assert ray.experimental.get_object_locations([reference])[reference]["object_size"] < 10_000


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_damaged_weights_are_refused(launch, board, transport):
    learner, engine = launch(Learner, {}, board, transport), launch(Engine, {}, board)
    ask(learner.publish_damaged.remote(4))
    with pytest.raises(
        ray.exceptions.RayTaskError, match=r"version 4 arrived damaged: .*; damaged are first"
    ):
        ask(engine.newest.remote(0))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_weights_that_died_with_their_learner_are_passed_over(launch, board, transport):
    learner = launch(Learner, {"max_restarts": 0}, board, transport)
    os.kill(ask(learner.publish.remote(7)), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ask(learner.publish.remote(8))
    engine = launch(Engine, {}, board)
    assert ask(engine.wait_for_loss.remote()) == 1
    successor = launch(Learner, {}, board, transport)
    ask(successor.publish.remote(8))
    assert ask(engine.wait.remote(0))[0] == 8


def test_a_transport_that_fails_is_no_silence(launch, board):
    class Nowhere(Learner):
        def publish(self, version: int) -> None:
            packed = weights(version)
            tensors = {dtype: torch.from_numpy(buffer) for dtype, buffer in packed.buffers.items()}
            reference = ray.put(replace(packed, buffers=tensors), _tensor_transport=file_transport.NAME)
            file_transport.lose_files()
            ray.get(board.publish.remote(version, [reference], packed.nbytes), timeout=WAIT_S)
            self.kept = reference

    learner, engine = launch(Nowhere, {}, board, file_transport.NAME), launch(Engine, {}, board)
    ask(learner.publish.remote(1))
    for asked in (engine.newest.remote(0), engine.wait.remote(0)):
        with pytest.raises(
            ray.exceptions.RayTaskError, match="version 1 of the weight board can't be fetched"
        ):
            ask(asked)


def test_a_node_without_nixl_says_so(launch, board, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="no nixl: `pip install nixl` on every node"):
        WeightPublisher(board, transport="nixl").publish(weights(1))
