"""The nodes of the cluster that this process has joined, and what none of them will ever grant."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray

from sluice.catalog.errors import ClusterError

Resources = Mapping[str, float]

HOPELESS_S = 20.0  # how long a node may be missing that a place needs: nodes come and go
_MANY = 1000  # nodes
_ROUNDING = 1e-6


def find_nodes() -> tuple[dict[str, float], ...]:
    """The resources of each node that is alive. Nodes that the autoscaler may add count as if they were
    there.
    """
    from ray._private.state import state  # what an autoscaler may add is told nowhere else

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    groups = getattr(state.get_cluster_config(), "node_group_configs", ())
    return (*nodes, *possible_nodes(groups))


def possible_nodes(groups: Iterable[Any]) -> Iterator[dict[str, float]]:
    """The nodes that groups of an autoscaler may have (`resources`, `max_count`); -1 has no bound."""
    for group in groups:
        count = group.max_count if group.max_count >= 0 else _MANY
        for _ in range(min(count, _MANY)):
            yield {name: amount if amount >= 0 else math.inf for name, amount in group.resources.items()}


def describe_misfit(places: Sequence[Resources], nodes: Sequence[Resources]) -> str | None:
    """What is short where the nodes could not hold all places even if nothing else ran on them; None where
    nothing is.

    >>> describe_misfit([{"CPU": 64.0}], [{"CPU": 2.0}, {"CPU": 8.0}])
    'CPU 64 is asked of one node, and the largest has 8'
    >>> describe_misfit([{"CPU": 2.0}] * 3, [{"CPU": 4.0}])
    'CPU 6 is asked of all nodes together, and they have 4'
    """
    for place in places:
        if not any(_fits(place, node) for node in nodes):
            return _lacking(place, nodes)
    for name in dict.fromkeys(name for place in places for name in place):
        wanted = sum(place.get(name, 0.0) for place in places)
        there = sum(node.get(name, 0.0) for node in nodes)
        if there + _ROUNDING < wanted:
            return f"{name} {wanted:g} is asked of all nodes together, and they have {there:g}"
    return None


def _fits(place: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) + _ROUNDING >= amount for name, amount in place.items())


def _lacking(place: Resources, nodes: Sequence[Resources]) -> str:
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in place}
    short = [
        f"{name} {amount:g} is asked of one node, and the largest has {most[name]:g}"
        for name, amount in place.items()
        if most[name] + _ROUNDING < amount
    ]
    together = " and ".join(f"{name} {amount:g}" for name, amount in place.items())
    return "; ".join(short) or f"no node has {together} together"


class MisfitWatch:
    """Says when places have been impossible for so long that nobody should wait for them."""

    def __init__(
        self,
        what: str,
        places: Sequence[Resources],
        *,
        nodes: Callable[[], Sequence[Resources]] = find_nodes,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = HOPELESS_S,
    ) -> None:
        self._what, self._places, self._nodes, self._clock = what, list(places), nodes, clock
        self._patience_s = patience_s
        self._since_s: float | None = None

    def check(self) -> bool:
        """Whether the nodes that there are now could hold the places.

        Raises:
            ClusterError: for `patience_s` they could not.
        """
        short = describe_misfit(self._places, self._nodes())
        if short is None:
            self._since_s = None
            return True
        self._since_s = self._clock() if self._since_s is None else self._since_s
        if self._clock() - self._since_s >= self._patience_s:
            raise ClusterError(
                f"the cluster has no place for {self._what}: {short}. Waiting does not mend that, so the run "
                "ends: add nodes, or ask for less (learner.workers, cluster.learner_*, rollout.actors, "
                "rollout.cpus, rollout.gpus, ranker_pool.*)"
            )
        return False

    def wait(self, pause_s: float = 1.0) -> None:
        """Until they could; raises as `check` does."""
        while not self.check():
            time.sleep(pause_s)
