"""Places that can never be granted."""

import math
import os
from types import SimpleNamespace

import pytest

from sluice.cluster.nodes import possible_nodes
from sluice.services.config import RunConfig
from sluice.services.places import plan_run
from sluice.services.preflight import resources
from sluice.services.preflight.resources import Machines, find_shortages, this_machine

TWO_CORES = Machines(name="this machine", nodes=({"CPU": 2.0},))
RUN = {
    "rollout": {"actors": 2, "cpus": 0.5},
    "ranker_pool": {"cpus": 0.1},
    "cluster": {"learner_cpus": 0.9},
}


def told(machines, **parts):
    plan = plan_run(RunConfig.model_validate({"name": "t"} | RUN | parts))
    return [
        (finding.field, finding.value, finding.bound, finding.exit_code)
        for finding in find_shortages(plan, machines)
    ]


def test_what_just_fits_is_no_shortage():
    assert told(TWO_CORES) == []


def test_the_whole_run_against_the_machine_says_what_is_short():
    plan = plan_run(RunConfig.model_validate({"name": "t"} | RUN | {"ranker_pool": {"cpus": 0.2}}))
    (finding,) = find_shortages(plan, TWO_CORES)
    assert finding.value == (
        "2 x rollout with 0.5 CPU; 1 x ranker with 0.2 CPU; 1 x learner with 0.9 CPU: in all 2.1 CPU"
    )
    assert (finding.bound, finding.exit_code) == ("this machine has 2 CPU", 3)
    assert finding.remedy.startswith("0.1 CPU are short: add nodes, or lower rollout.actors")


def test_learners_count_too():
    assert told(TWO_CORES, learner={"workers": 2})[0][1].endswith("in all 2.9 CPU")


def test_one_actor_must_fit_on_one_node():
    nodes = Machines(name="the cluster", nodes=({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}))
    assert told(nodes, rollout={"cpus": 5}) == [
        ("rollout.cpus", "5 CPU for one rollout", "the cluster has a node with 4 CPU at most", 3)
    ]
    assert [field for field, *_ in told(nodes, cluster={"learner_cpus": 5.0})] == [
        "cluster.learner_cpus",
        "cluster",
    ]
    assert [field for field, *_ in told(nodes, ranker_pool={"gpus": 2})] == ["ranker_pool.gpus", "cluster"]


def test_gpus_that_are_not_there_are_told():
    assert [field for field, *_ in told(TWO_CORES, rollout={"gpus": 1})] == ["rollout.gpus", "cluster"]


def test_a_label_that_no_node_has_is_told():
    cluster = {"learner_cpus": 0.9, "rollout_resource": "fast"}
    assert told(TWO_CORES, cluster=cluster)[0][:2] == ("cluster.rollout_resource", "fast")
    assert told(Machines(name="the cluster", nodes=({"CPU": 9.0, "fast": 1.0},)), cluster=cluster) == []


def test_nodes_that_an_autoscaler_may_add_count():
    groups = [
        SimpleNamespace(resources={"CPU": 4, "fast": 1}, max_count=2),
        SimpleNamespace(resources={"CPU": 1, "slow": -1}, max_count=-1),
        SimpleNamespace(resources={"GPU": 8}, max_count=0),
    ]
    nodes = Machines(name="the cluster", nodes=({"CPU": 1.0}, *possible_nodes(groups)))
    assert (nodes.total("fast"), nodes.total("GPU"), nodes.most("CPU")) == (2.0, 0.0, 4.0)
    assert nodes.total("CPU") >= 1000 and nodes.most("slow") == math.inf


@pytest.mark.parametrize("with_gpus", [False, True])
def test_this_machine_has_its_cores(with_gpus, monkeypatch):
    monkeypatch.setattr(resources, "_GPU_DEVICES", ())
    machine = this_machine(with_gpus)
    assert machine.nodes == ({"CPU": float(os.cpu_count())},) and machine.total("GPU") == 0
