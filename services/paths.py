"""Where everything of a run lies, below its directory."""

from dataclasses import dataclass
from pathlib import Path

from sluice.services.config import RunConfig


@dataclass(frozen=True)
class RunPaths:
    """The run directory and what is in it."""

    root: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        """The absolute paths of a run: its actors on other nodes have other working directories."""
        return cls(config.directory.resolve())

    @property
    def data(self) -> Path:
        """The prepared data set."""
        return self.root / "data"

    @property
    def catalogue(self) -> Path:
        """Changes of the catalogue since the run began (`sluice.catalog.data.changes`)."""
        return self.root / "catalogue"

    @property
    def policy(self) -> Path:
        """The starting policy."""
        return self.root / "policy"

    @property
    def ranker(self) -> Path:
        """The fitted ranker."""
        return self.root / "ranker"

    @property
    def best(self) -> Path:
        """The post-trained policy at its best validation."""
        return self.root / "best"

    @property
    def last(self) -> Path:
        """The policy after the last step."""
        return self.root / "last"

    @property
    def control(self) -> Path:
        """The control (NLL alone) at its best validation."""
        return self.root / "control"

    @property
    def control_last(self) -> Path:
        """The control after its last step."""
        return self.root / "control-last"

    @property
    def checkpoints(self) -> Path:
        """Ray Train's storage: one directory per training, and one for the best checkpoint of it."""
        return self.root / "checkpoints"

    def best_checkpoint(self, name: str) -> Path:
        """The whole checkpoint at the best validation of a training: "train" or "control"."""
        return self.checkpoints / f"{name}-best"

    def metrics(self, name: str) -> Path:
        """The metrics of a training: "train" or "control"."""
        return self.root / ("metrics.jsonl" if name == "train" else f"metrics-{name}.jsonl")

    @property
    def summary(self) -> Path:
        """The final figures."""
        return self.root / "summary.json"
