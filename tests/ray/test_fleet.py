"""Actors that fail: an engine that cannot start ends the run with its own error, one that cannot answer does
not.
"""

import time

import pytest
import ray

from sluice.actors.rollout.worker import RolloutStats
from sluice.actors.settings import QueueSettings
from sluice.catalog.errors import ClusterError, PolicyError
from sluice.cluster.settings import ClusterSettings
from sluice.services.run import fleet as fleet_module
from sluice.services.run.fleet import Fleet
from sluice.services.run.supervisor import Rollout, Supervisor

pytestmark = pytest.mark.ray


class Queue:
    """Remembers what it was told."""

    handle = None

    def __init__(self):
        self.failed = []

    def fail(self, message):
        self.failed.append(message)


def fleet(started):
    rollouts = [Rollout(name="rollout-0", handle=None, vocabulary=None, clients=None, started=started)]
    queue = Queue()
    return Fleet(
        queue=queue,
        publisher=None,
        catalogues=None,
        catalogue_source=None,
        rollouts=rollouts,
        reservation=None,
        supervisor=Supervisor(queue, rollouts, cluster=ClusterSettings(), settings=QueueSettings()),
    )


def test_an_engine_that_cannot_start_ends_the_run_with_its_own_error(cluster):
    @ray.remote
    def broken():
        raise PolicyError("policy p has attention heads of size 48")

    started = fleet(broken.remote())
    with pytest.raises(PolicyError, match="heads of size 48"):
        started.begin(60)
    assert isinstance(started.failure, PolicyError)
    assert started.queue.failed == ["policy p has attention heads of size 48"]


def test_an_engine_that_takes_too_long_is_named(cluster):
    @ray.remote(num_cpus=100)  # never placed
    def late():
        return 0.0

    started = fleet(late.remote())
    with pytest.raises(
        ClusterError, match=r"engines of rollout-0 were not ready within 0 s; raise cluster.start_timeout"
    ):
        started.begin(0.2)
    assert started.queue.failed == [str(started.failure)]


def kill(actor, within_s=60.0):
    """End an actor and see its end: ``ray.kill`` returns before, and a call in between may still be
    answered.
    """
    ray.kill(actor)
    end = time.monotonic() + within_s
    with pytest.raises(ray.exceptions.RayActorError):
        while time.monotonic() < end:
            ray.get(actor.stats.remote(), timeout=within_s)


class Counting:
    """What a fleet asks of a rollout actor."""

    def __init__(self, busy_s: float = 0.0):
        self.busy_s = busy_s

    def stats(self):
        time.sleep(self.busy_s)
        return RolloutStats(groups=7, version=3, time={"generate": 2.0})

    def node(self):
        return "node-a"


def test_actors_that_are_dead_or_wedged_when_the_run_is_summed_up_are_left_out_by_name(
    launch, monkeypatch, caplog
):
    monkeypatch.setattr(fleet_module, "_STATS_S", 5.0)
    alive, dead = launch(Counting), launch(Counting, {"max_restarts": 0})
    ray.get([alive.stats.remote(), dead.stats.remote()], timeout=60)
    wedged = launch(Counting, None, 300.0)
    kill(dead)
    one = fleet(None)
    one.rollouts = [
        Rollout(name=name, handle=handle, vocabulary=None, clients=None, started=None)
        for name, handle in (("rollout-0", dead), ("rollout-1", alive), ("rollout-2", wedged))
    ]
    one.rankers = [dead]
    assert one.times() == {"rollout-1": {"generate": 2.0}}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "without ranker-0: ranker-0.stats failed because its actor died" in told[0]
    assert "without rollout-0" in told[1]
    assert "without rollout-2: rollout-2.stats gave no answer within 5 s" in told[2]
    counts = one.stats()
    assert list(counts) == ["rollout-1"]
    assert (counts["rollout-1"]["groups"], counts["rollout-1"]["node"]) == (7, "node-a")
