"""What no node of a cluster will ever grant."""

import pytest

from sluice.catalog.errors import ClusterError
from sluice.cluster.nodes import MisfitWatch, describe_misfit

NODES = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "disk": 1.0}]


@pytest.mark.parametrize(
    ("places", "short"),
    [
        ([], None),
        ([{"CPU": 16.0}], None),
        ([{"CPU": 16.0000001}], None),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}], None),
        ([{"CPU": 64.0}], "CPU 64 is asked of one node, and the largest has 16"),
        ([{"CPU": 2.0}, {"TPU": 1.0}], "TPU 1 is asked of one node, and the largest has 0"),
        ([{"CPU": 16.0, "GPU": 1.0}], "no node has CPU 16 and GPU 1 together"),
        ([{"CPU": 9.0}] * 3, "CPU 27 is asked of all nodes together, and they have 26"),
    ],
)
def test_what_is_short_is_named(places, short):
    assert describe_misfit(places, NODES) == short


def test_a_cluster_without_nodes_has_no_place():
    assert describe_misfit([{"CPU": 1.0}], []) == "CPU 1 is asked of one node, and the largest has 0"


class Cluster:
    def __init__(self):
        self.now_s, self.cpus = 100.0, 2.0

    def watch(self):
        return MisfitWatch(
            "2 x learner", [{"CPU": 4.0}], nodes=lambda: [{"CPU": self.cpus}], clock=lambda: self.now_s
        )


def test_a_node_may_be_missing_for_a_while_but_not_for_ever():
    cluster = Cluster()
    watch = cluster.watch()
    assert not watch.check()
    cluster.now_s += 19
    assert not watch.check()
    cluster.now_s += 1
    with pytest.raises(
        ClusterError, match="no place for 2 x learner: CPU 4 is asked of one node, and the la"
    ):
        watch.check()


def test_a_node_that_comes_starts_the_patience_anew():
    cluster = Cluster()
    watch = cluster.watch()
    assert not watch.check()
    cluster.now_s, cluster.cpus = 115.0, 4.0
    assert watch.check()
    cluster.now_s, cluster.cpus = 125.0, 2.0
    assert not watch.check()
    cluster.now_s += 19
    assert not watch.check()
