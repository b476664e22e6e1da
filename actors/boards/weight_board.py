"""The weight board: where the newest weights are (`sluice.actors.boards.version_board`).

The learner publishes version after version; rollout actors take them up. Version 0 is the starting policy,
which every engine begins with.

How the bytes travel is `weights.transport`: through the object store, one copy per node, or by Ray Direct
Transport, from the learner's memory into that of each actor that asks. The board holds a reference in either
case, and a version lives as long as the board or somebody who is fetching it holds it.
"""

import importlib.util
import time
from dataclasses import replace
from typing import Any

import ray
import torch

from sluice.actors.boards.version_board import GRACE_S, BoardStatus, VersionBoard, VersionSource
from sluice.actors.calls import get_result
from sluice.actors.settings import WeightTransport
from sluice.catalog.errors import HopelessError
from sluice.cluster.metrics import MetricSet
from sluice.learner.policy.packed_weights import PackedWeights, UnverifiedWeights


class WeightBoard(VersionBoard):
    """The board. Decorate with `ray.remote` where it is launched."""

    what = "weights"


class KeptWeightBoard(WeightBoard):
    """The board of a deterministic run, whose versions are asked for by number. It holds the newest ones.

    A learner that goes back to a checkpoint publishes again, under the same numbers, the same weights: of
    what is there, the versions above the one published go.
    """

    def __init__(self, keep: int) -> None:
        """`keep` is how many are held."""
        super().__init__()
        self._keep = keep
        self._kept: dict[int, list[Any]] = {}  # version -> its reference

    async def publish(self, version: int, references: list[Any], nbytes: int) -> None:
        """Hold this version too, and none above it."""
        async with self._changed:
            self._kept = {
                kept: held for kept, held in self._kept.items() if version - self._keep < kept < version
            }
            self._kept[version] = list(references)
            self._version, self._nbytes = version, nbytes
            self._published += 1
            self._changed.notify_all()

    async def at(self, version: int, wait_s: float) -> list[Any] | None:
        """The reference of this version; None when it is not there within `wait_s`."""
        async with self._changed:
            if not await self._comes_to_hold(lambda: version in self._kept, wait_s):
                return None
            return self._kept[version]


class WeightPublisher:
    """The learner's side."""

    def __init__(
        self, handle: Any, *, transport: WeightTransport = "object_store", timeout_s: float = 60.0
    ) -> None:
        self._handle, self._transport, self._timeout_s = handle, transport, timeout_s
        self._metrics = MetricSet()

    def publish(self, weights: PackedWeights) -> float:
        """Make the weights available once and announce them; returns the seconds that took.

        Raises:
            RunError: the board has a later version or is gone.
            HopelessError: this node lacks what the transport needs.
        """
        started_s = time.monotonic()
        reference = self._handle.publish.remote(weights.version, [self._put(weights)], weights.nbytes)
        get_result(reference, f"the weight board (publish version {weights.version})", self._timeout_s)
        seconds = time.monotonic() - started_s
        self._metrics.observe("sluice_weight_publish_seconds", seconds)
        return seconds

    def latest_version(self) -> int:
        """The version on the board, 0 when nothing was published."""
        status: BoardStatus = get_result(
            self._handle.status.remote(), "the weight board (status)", self._timeout_s
        )
        return status.version

    def _put(self, weights: PackedWeights) -> Any:
        if self._transport == "object_store":
            return ray.put(weights)
        if self._transport == "nixl" and importlib.util.find_spec("nixl") is None:
            raise HopelessError(
                "weights.transport is nixl, but the learner's node has no nixl: `pip install nixl` on every "
                "node that has learner workers or rollout actors, or set weights.transport to object_store"
            )
        # Ray takes tensors out of what is put and leaves them where they are: who fetches reads them from
        # here. `WeightSource.receive` makes arrays of them again.
        tensors: dict[str, Any] = {
            dtype: torch.from_numpy(buffer) for dtype, buffer in weights.buffers.items()
        }
        return ray.put(replace(weights, buffers=tensors), _tensor_transport=self._transport)


class WeightSource(VersionSource[UnverifiedWeights]):
    """A rollout actor's side."""

    board = "weight board"

    def at(self, version: int, wait_s: float) -> UnverifiedWeights | None:
        """This very version, from a `KeptWeightBoard`; None when it is not there within `wait_s`, or died
        with the learner that put it, which will put it again.

        Raises:
            RunError: the board gave no answer.
            PolicyError: the manifest arrived damaged.
        """
        references: list[Any] | None = get_result(
            self._handle.at.remote(version, wait_s), f"the {self.board} (version {version})", wait_s + GRACE_S
        )
        return None if references is None else self._fetch((version, references))

    def receive(self, arrived: PackedWeights) -> UnverifiedWeights:
        """The weights by whichever transport; raises PolicyError when their manifest arrived damaged."""
        buffers = {
            dtype: buffer.numpy() if isinstance(buffer, torch.Tensor) else buffer
            for dtype, buffer in arrived.buffers.items()
        }
        return UnverifiedWeights(replace(arrived, buffers=buffers))
