"""Settings of where a run lives: which nodes take which actors, and how failures are met. Imports no Ray."""

from typing import Annotated

from pydantic import Field

from sluice.catalog.settings import Cpus, Gpus, Seconds, Settings, Unit


class ClusterSettings(Settings):
    """Resources of the parts and the labels that pin them to nodes."""

    learner_cpus: Cpus = Field(default=1.0, gt=0, description="CPU cores of a learner worker.")
    learner_gpus: Gpus = Field(default=0.0, ge=0, description="GPUs of a learner worker.")
    learner_resource: str | None = Field(
        default=None,
        description="Name of a custom Ray resource that only learner nodes have. null: any node.",
    )
    rollout_resource: str | None = Field(
        default=None,
        description="Name of a custom Ray resource that only rollout nodes have. null: any node.",
    )
    placement_timeout_s: Seconds = Field(
        default=120.0, gt=0, description="Longest wait for the resources before the run gives up."
    )
    start_timeout_s: Seconds = Field(
        default=300.0, gt=0, description="Longest wait for an actor's engine to be ready."
    )
    hang_timeout_s: Seconds = Field(
        default=60.0,
        gt=0,
        description="Longest time in which an actor of the run gives no sign of life, or an engine makes no "
        "step while it has prompts. Then the actor is replaced.",
    )
    max_actor_restarts: Annotated[int, Unit("restarts")] = Field(
        default=20, ge=0, description="Restarts of each rollout actor, ranker, queue or board within one run."
    )
    max_learner_restarts: Annotated[int, Unit("restarts")] = Field(
        default=2, ge=0, description="Restarts of the learner, each from its last checkpoint."
    )
