"""The weight board: where the newest weights are (`actors.version_board`).

The learner publishes version after version; rollout actors take them up. Version 0 is the starting policy, which every
engine begins with.
"""

import time
from typing import Any

import ray

from actors.calls import answer
from actors.version_board import VersionBoard, VersionSource
from cluster.metrics import MetricSet
from learner.weights import PackedWeights


class WeightBoard(VersionBoard):
    """The board. Decorate with `ray.remote` where it is launched."""

    what = "weights"


class WeightPublisher:
    """The learner's side."""

    def __init__(self, handle: Any, *, timeout_s: float = 60.0) -> None:
        self._handle, self._timeout_s = handle, timeout_s
        self._metrics = MetricSet()

    def publish(self, weights: PackedWeights) -> float:
        """Put the weights into the object store once and announce them; returns the seconds that took."""
        started_s = time.monotonic()
        reference = self._handle.publish.remote(weights.version, [ray.put(weights)], weights.nbytes)
        answer(reference, f"the weight board (publish version {weights.version})", self._timeout_s)
        seconds = time.monotonic() - started_s
        self._metrics.observe("sluice_weight_publish_seconds", seconds)
        return seconds

    def latest_version(self) -> int:
        """The version on the board, 0 when nothing was published."""
        return answer(self._handle.status.remote(), "the weight board (status)", self._timeout_s).version


class WeightSource(VersionSource[PackedWeights]):
    """A rollout actor's side."""

    board = "weight board"

    def verify(self, thing: PackedWeights) -> None:
        """Raises PolicyError when the weights arrived damaged."""
        thing.verify()
