"""The places of a run against what a cluster has: what can never be granted, whoever else runs there."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sluice.cluster.placement import Bundle, PlacementPlan
from sluice.services.preflight.finding import CLUSTER, Finding

_SETTINGS = {"rollout": "rollout", "ranker": "ranker_pool", "learner": "cluster.learner"}
THIS_MACHINE = "this machine"
_ROUNDING = 1e-6
_GPU_DEVICES = ("/dev/nvidia[0-9]*", "/dev/dri/renderD*", "/dev/dxg")


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The nodes that a run may use."""

    name: str  # "the cluster", or `THIS_MACHINE` where a head is yet to be started
    nodes: tuple[dict[str, float], ...]  # resources of each

    def total(self, resource: str) -> float:
        """Over all nodes."""
        return sum(node.get(resource, 0.0) for node in self.nodes)

    def most(self, resource: str) -> float:
        """Of the node that has most."""
        return max((node.get(resource, 0.0) for node in self.nodes), default=0.0)


def this_machine(with_gpus: bool) -> Machines:
    """What a head has that is started here. GPUs are counted (by torch) only where the run wants some."""
    resources = {"CPU": float(os.cpu_count() or 1)}
    if with_gpus and any(glob.glob(pattern) for pattern in _GPU_DEVICES):
        import torch

        resources["GPU"] = float(torch.cuda.device_count())
    return Machines(name=THIS_MACHINE, nodes=(resources,))


def joined_cluster(address: str | None = None) -> Machines:
    """The cluster that this process belongs to, or joins now: at `address`, or the one that runs here.

    Nodes that its autoscaler may add count as if they were there.

    Raises:
        ClusterError: there is none, or it refuses us.
    """
    from sluice.cluster.nodes import find_nodes
    from sluice.cluster.session import connect_cluster

    connect_cluster(address or "auto")
    return Machines(name="the cluster", nodes=find_nodes())


def find_shortages(plan: PlacementPlan, machines: Machines) -> Iterator[Finding]:
    """Resources that no node has enough of for one actor, or that all nodes together lack."""
    places = plan.bundles + plan.learners
    names = sorted({name for place in places for name in place.resources})
    for name in names:
        largest = max((place for place in places if name in place.resources), key=lambda p: p.resources[name])
        if largest.resources[name] > machines.most(name) + _ROUNDING:
            yield _too_large(largest, name, machines)
    wanted = {name: sum(place.resources.get(name, 0.0) for place in places) for name in names}
    for name, amount in wanted.items():
        if name in ("CPU", "GPU") and amount > machines.total(name) + _ROUNDING:
            yield Finding(
                field="cluster",
                value=f"{plan.describe()}: in all {amount:g} {name}",
                bound=f"{machines.name} has {machines.total(name):g} {name}",
                remedy=f"{amount - machines.total(name):g} {name} are short: add nodes, or lower "
                "rollout.actors, rollout.cpus, rollout.gpus, ranker_pool.* or cluster.learner_*",
                exit_code=CLUSTER,
            )


def _too_large(place: Bundle, name: str, machines: Machines) -> Finding:
    kind = {"CPU": "cpus", "GPU": "gpus"}.get(name, "resource")
    joint = "_" if place.role == "learner" else "."
    setting = f"{_SETTINGS[place.role]}{joint}{kind}"
    if kind == "resource":
        return Finding(
            field=f"cluster.{place.role}_resource",
            value=f"{name}",
            bound=f"no node of {machines.name} has a resource of that name"
            if machines.name != THIS_MACHINE
            else "a head that is started here has none of that name",
            remedy=f"start nodes with --resources='{{\"{name}\": 1}}', or set it to null",
            exit_code=CLUSTER,
        )
    return Finding(
        field=setting,
        value=f"{place.resources[name]:g} {name} for one {place.role}",
        bound=f"{machines.name} has a node with {machines.most(name):g} {name} at most",
        remedy="lower it, or add a larger node",
        exit_code=CLUSTER,
    )
