"""Where everything of a run lies, below its directory.

A run trains several policies from one start: the post-training ("train"), the control, and with `compare:
full` further arms. Each has an `ArmPaths`.
"""

from dataclasses import dataclass
from pathlib import Path

from sluice.services.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ArmPaths:
    """What one training of the run leaves."""

    best: Path  # the policy at its best validation
    last: Path  # the policy after the last step
    metrics: Path
    journal: Path  # of its prompts, where there are rollouts
    checkpoints: Path  # Ray Train's storage
    kept: Path  # the last checkpoints, in that storage
    best_checkpoint: Path  # the whole checkpoint at the best validation


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
    def built(self) -> tuple[Path, ...]:
        """What stages and trainings leave as whole directories."""
        arms = (self.best, self.last, self.control, self.control_last)
        return (self.data, self.policy, self.ranker, self.ranker_halves, self.sft_all, *arms)

    @property
    def policy(self) -> Path:
        """The starting policy."""
        return self.root / "policy"

    @property
    def ranker(self) -> Path:
        """The fitted ranker."""
        return self.root / "ranker"

    @property
    def ranker_halves(self) -> Path:
        """The ranker fitted without each half of the users, where the gate asks for trust."""
        return self.root / "ranker-halves"

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
    def ranks(self) -> Path:
        """The rank of every test example's target in the list of every row of the results."""
        return self.root / "ranks.parquet"

    @property
    def trust(self) -> Path:
        """Trust in the ranker for the users of the test examples, where the gate asks for it."""
        return self.root / "trust.parquet"

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.root / "report.html"

    @property
    def audit(self) -> Path:
        """What `sluice audit` says of the ranker before the training."""
        return self.root / "audit"

    @property
    def checkpoints(self) -> Path:
        """Ray Train's storage: one directory per training, and one for the best checkpoint of it."""
        return self.root / "checkpoints"

    @property
    def sft_all(self) -> Path:
        """The policy pretrained on all logs until the end of the fresh part."""
        return self.root / "arms" / "sft_all"

    def arm(self, name: str) -> ArmPaths:
        """A training: "train", "control", or a further arm, which has a directory of its own."""
        if name in ("train", "control"):
            best, last = {"train": (self.best, self.last), "control": (self.control, self.control_last)}[name]
            metrics = self.root / ("metrics.jsonl" if name == "train" else f"metrics-{name}.jsonl")
            journal = self.root / ("journal.jsonl" if name == "train" else f"journal-{name}.jsonl")
            checkpoints = self.checkpoints
        else:
            root = self.root / "arms" / name
            best, last = root / "best", root / "last"
            metrics, journal = root / "metrics.jsonl", root / "journal.jsonl"
            checkpoints = root / "checkpoints"
        return ArmPaths(
            best=best,
            last=last,
            metrics=metrics,
            journal=journal,
            checkpoints=checkpoints,
            kept=checkpoints / name,
            best_checkpoint=checkpoints / f"{name}-best",
        )

    @property
    def summary(self) -> Path:
        """The final figures."""
        return self.root / "summary.json"
