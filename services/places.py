"""The places that a run asks a cluster for, from its config. Nothing is reserved here."""

from sluice.cluster.placement import PlacementPlan, RoleNeeds, plan_placement
from sluice.services.config import RunConfig


def plan_run(config: RunConfig) -> PlacementPlan:
    """A place for each rollout actor, ranker actor and learner worker."""
    rollout, pool = config.rollout, config.ranker_pool
    return plan_placement(
        config.cluster,
        rollouts=RoleNeeds(count=rollout.actors, cpus=rollout.cpus, gpus=rollout.gpus),
        rankers=RoleNeeds(count=pool.actors, cpus=pool.cpus, gpus=pool.gpus),
        learner_workers=config.learner.workers,
    )
