"""The newest published weights of a deterministic run, which its rollouts may still ask for.

    weights.safetensors, weights.json    in a checkpoint: version -> name -> tensor

A prompt is generated for by the weights of a version that its place in the feed decides. A run that goes on
from a checkpoint therefore needs the versions before the checkpoint's own too.
"""

from pathlib import Path

import torch

from sluice.catalog.errors import RunError
from sluice.learner.policy.packed_weights import PackedWeights, pack_weights
from sluice.learner.training.state_files import has_state, load_state, save_state

_NAME = "weights"


class KeptWeights:
    """Of one learner worker, the one that publishes."""

    def __init__(self, count: int) -> None:
        """`count` versions are kept; 0: none, and no file is written or read."""
        self._count = count
        self._versions: dict[int, PackedWeights] = {}

    def all(self) -> list[PackedWeights]:
        """The kept versions, oldest first."""
        return [self._versions[version] for version in sorted(self._versions)]

    def add(self, weights: PackedWeights) -> None:
        """Keep these, and forget the oldest when they are too many."""
        self._versions[weights.version] = weights
        for version in sorted(self._versions)[: max(0, len(self._versions) - self._count)]:
            del self._versions[version]

    def save(self, checkpoint: Path) -> None:
        """Add them to a checkpoint."""
        if self._count > 0:
            state: dict[int, dict[str, torch.Tensor]] = {
                version: dict(weights.tensors()) for version, weights in self._versions.items()
            }
            save_state(state, checkpoint / _NAME)

    def load(self, checkpoint: Path) -> None:
        """Take those of a checkpoint.

        Raises:
            RunError: it has none.
        """
        if self._count == 0:
            return
        if not has_state(checkpoint / _NAME):
            raise RunError(
                f"{checkpoint} holds no published weights, so it is not of a deterministic run: resume it "
                "without deterministic, or start a new run"
            )
        state: dict[int, dict[str, torch.Tensor]] = load_state(checkpoint / _NAME)
        self._versions = {
            version: pack_weights(tensors.items(), version) for version, tensors in state.items()
        }
