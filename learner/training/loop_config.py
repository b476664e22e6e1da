"""What a worker of the train loop is told, and what it needs of others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.sources import Catalogues, RolloutQueue
from sluice.learner.objectives.settings.objective import Objective
from sluice.learner.policy.packed_weights import PackedWeights
from sluice.learner.settings import EvaluationSettings, LearnerSettings


class Meter(Protocol):
    """Where a component says what its time goes to (`sluice.cluster.metrics.MetricSet`)."""

    def set_times(self, component: str, seconds: Mapping[str, float]) -> None:
        """Seconds so far, by activity."""


class Publisher(Protocol):
    """What the loop needs of the weight board's client
    (`sluice.actors.boards.weight_board.WeightPublisher`).
    """

    def publish(self, weights: PackedWeights) -> object:
        """Make the weights available to the rollout actors."""

    def latest_version(self) -> int:
        """Version on the board, 0 when nothing was published."""


def version_after(step: int, version: int, publish_every: int) -> int:
    """The weight version of the learner once `step` (from 0) is done, when it publishes every so many
    steps.
    """
    return version + ((step + 1) % publish_every == 0)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Everything a worker is told; travels pickled."""

    metrics_path: str
    journal_path: str
    data_directory: str
    policy_directory: str  # the starting policy, with which the reference starts too
    best_directory: str  # the policy with the best validation
    best_checkpoint: str  # the whole checkpoint of it
    checkpoints: str  # where Ray Train keeps the last ones
    last_directory: str
    seed: int
    objective: Objective
    learner: LearnerSettings
    evaluation: EvaluationSettings
    publish_every: int
    threads: int  # CPU threads of a worker
    decoding: Decoding  # of the rollouts
    queue: RolloutQueue | None  # None: learn from the logs alone
    publisher: Publisher | None
    open_vocabulary: Callable[[], Vocabulary] | None = (
        None  # the copy of this node; None: made by every worker
    )
    catalogues: Catalogues | None = None  # None: the catalogue never changes
    meter: Meter | None = None
    # newest versions of the weights that the rollouts of a deterministic run may ask for; 0: of another run,
    # which has only the newest
    kept_versions: int = 0
