"""Settings of where a run lives: which nodes take which actors, and how failures are met. Imports no Ray."""

from pydantic import Field

from sluice.catalog.settings import Settings


class ClusterSettings(Settings):
    """Resources of the parts and the labels that pin them to nodes."""

    learner_cpus: float = Field(default=1.0, gt=0)  # per learner worker
    learner_gpus: float = Field(default=0.0, ge=0)
    learner_resource: str | None = None  # a custom Ray resource that only learner nodes have
    rollout_resource: str | None = None  # a custom Ray resource that only rollout nodes have
    placement_timeout_s: float = Field(
        default=120.0, gt=0
    )  # longest wait for the resources before the run gives up
    start_timeout_s: float = Field(default=300.0, gt=0)  # longest wait for an actor's engine to be ready
    max_actor_restarts: int = Field(default=20, ge=0)  # of each rollout or ranker actor, within one run
    max_learner_restarts: int = Field(default=2, ge=0)  # from the last checkpoint
