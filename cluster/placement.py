"""Where the actors of a run go: a plan as a pure function of the settings, and its reservation on the
cluster.

Rollout and ranker actors get a bundle each in one placement group, so the run has either all of them or none,
and a restarted actor finds its place again. The learner's workers are in the plan only to be counted: Ray
Train makes a placement group of its own for them. Actors that need neither CPU nor GPU (queue, weight board)
need no place.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray
from ray import JobID, PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sluice.catalog.errors import ClusterError
from sluice.cluster.nodes import MisfitWatch
from sluice.cluster.settings import ClusterSettings

_LOOK_EVERY_S = 1.0  # whether the nodes can still grant it

# A label is a custom resource of which the bundle takes next to nothing: the node has it or has it not.
_LABEL_SHARE = 0.001


@dataclass(frozen=True, kw_only=True)
class RoleNeeds:
    """How many actors of a role there are and what each takes."""

    count: int
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The place of one actor."""

    role: str
    index: int  # among the actors of its role
    resources: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PlacementPlan:
    """All places of a run."""

    bundles: tuple[Bundle, ...]  # reserved here
    learners: tuple[Bundle, ...]  # reserved by Ray Train

    @property
    def totals(self) -> dict[str, float]:
        """The plan's demand by resource, learners included; labels are left out."""
        total: Counter[str] = Counter()
        for bundle in self.bundles + self.learners:
            total.update(
                {name: amount for name, amount in bundle.resources.items() if name in ("CPU", "GPU")}
            )
        return {name: round(amount, 3) for name, amount in total.items()}

    def describe(self) -> str:
        """The demand in words, one clause per role."""
        groups = Counter((bundle.role, _words(bundle.resources)) for bundle in self.bundles + self.learners)
        return "; ".join(f"{count} x {role} with {words}" for (role, words), count in groups.items())


def plan_placement(
    settings: ClusterSettings, *, rollouts: RoleNeeds, rankers: RoleNeeds, learner_workers: int
) -> PlacementPlan:
    """The places of a run. Rollout actors carry the rollout label, learner workers the learner's, rankers
    none.
    """
    learners = tuple(
        Bundle(role="learner", index=index, resources=learner_resources(settings))
        for index in range(learner_workers)
    )
    return PlacementPlan(
        bundles=_bundles("rollout", rollouts, settings.rollout_resource) + _bundles("ranker", rankers, None),
        learners=learners,
    )


def learner_resources(settings: ClusterSettings) -> dict[str, float]:
    """What one learner worker takes (`ScalingConfig.resources_per_worker`), and any task that stands in for
    one.
    """
    return _resources(settings.learner_cpus, settings.learner_gpus, settings.learner_resource)


def as_options(resources: dict[str, float]) -> dict[str, Any]:
    """Resources as arguments for `.options(...)` of a task or an actor."""
    custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": custom}


class Reservation:
    """A plan that the cluster has granted."""

    def __init__(
        self, granted: PlacementPlan, group: PlacementGroup | None, places: dict[tuple[str, int], int]
    ) -> None:
        self._group = group
        self._places = places
        self._resources = {(bundle.role, bundle.index): bundle.resources for bundle in granted.bundles}

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Arguments for `.options(...)` that put actor `index` of a role into its place."""
        options = as_options(self._resources[role, index])
        if self._group is not None and (role, index) in self._places:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=self._places[role, index]
            )
        return options

    def release(self) -> None:
        """Give the places back; actors still in them are killed by Ray."""
        if self._group is not None:
            remove_placement_group(self._group)


def reserve_placement(plan: PlacementPlan, timeout_s: float) -> Reservation:
    """Reserve the plan's bundles, once it is sure that the learner's will fit beside them.

    Raises:
        ClusterError: the cluster did not grant all of it within `timeout_s`, or no node is large enough for a
            part of it, whoever else runs there.
    """
    deadline_s = time.monotonic() + timeout_s
    places = [bundle for bundle in plan.bundles if bundle.resources]
    group = _granted(plan, places, deadline_s, timeout_s)
    try:
        # Granted and given back at once: Ray Train asks for the same in a moment. Without this it would wait
        # for ever.
        learners = _granted(plan, list(plan.learners), deadline_s, timeout_s)
    except ClusterError:
        if group is not None:
            remove_placement_group(group)
        raise
    if learners is not None:
        remove_placement_group(learners)
    return Reservation(
        plan, group, {(bundle.role, bundle.index): place for place, bundle in enumerate(places)}
    )


def _granted(
    plan: PlacementPlan, bundles: list[Bundle], deadline_s: float, timeout_s: float
) -> PlacementGroup | None:
    if not bundles:
        return None
    group: PlacementGroup = placement_group([bundle.resources for bundle in bundles], strategy="PACK")
    misfit = MisfitWatch(plan.describe(), [bundle.resources for bundle in bundles])
    try:
        while not group.wait(max(0.1, min(_LOOK_EVERY_S, deadline_s - time.monotonic()))):
            misfit.check()
            if time.monotonic() >= deadline_s:
                raise ClusterError(
                    describe_shortage(plan, ray.cluster_resources(), ray.available_resources(), timeout_s)
                )
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def describe_shortage(
    plan: PlacementPlan, total: dict[str, float], free: dict[str, float], timeout_s: float
) -> str:
    """Why a plan was not granted: what it asks for against what the cluster has and what of it is free."""
    names = sorted({name for bundle in plan.bundles + plan.learners for name in bundle.resources})
    have = ", ".join(f"{name} {total.get(name, 0):g} ({free.get(name, 0):g} free)" for name in names)
    absent = [name for name in names if not total.get(name)]
    remedy = (
        f"No node has the resource(s) {', '.join(absent)}: start nodes with them, or change "
        f"cluster.*_resource or *.gpus"
        if absent
        else "Add nodes, stop what else runs there, or lower rollout.actors, rollout.cpus, ranker_pool.* or "
        "cluster.learner_cpus"
    )
    return (
        f"the cluster did not grant the run's resources within {timeout_s:g} s. Asked for: "
        f"{plan.describe()} (in all {_words(plan.totals)}). The cluster has {have}. {remedy}"
    )


def known_groups() -> frozenset[str]:
    """The ids of the cluster's placement groups so far."""
    return frozenset(placement_group_table())


def remove_groups(but: frozenset[str]) -> None:
    """Remove the placement groups that this job has made since it knew those of `but`.

    A controller of Ray Train that was killed leaves the group of its workers behind, whose resources nobody
    else would get before the job ends.
    """
    own = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if name not in but and group["state"] != "REMOVED" and _job_of(name) == own:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _job_of(name: str) -> str:
    """The id of the job that made a placement group: its id ends with it."""
    return name[-2 * JobID.size() :]


def _bundles(role: str, needs: RoleNeeds, label: str | None) -> tuple[Bundle, ...]:
    resources = _resources(needs.cpus, needs.gpus, label)
    return tuple(Bundle(role=role, index=index, resources=dict(resources)) for index in range(needs.count))


def _resources(cpus: float, gpus: float, label: str | None) -> dict[str, float]:
    amounts = {"CPU": cpus, "GPU": gpus} | ({label: _LABEL_SHARE} if label is not None else {})
    return {name: amount for name, amount in amounts.items() if amount > 0}


def _words(resources: dict[str, float]) -> str:
    parts = [name if amount == _LABEL_SHARE else f"{amount:g} {name}" for name, amount in resources.items()]
    return " + ".join(parts) or "nothing"
