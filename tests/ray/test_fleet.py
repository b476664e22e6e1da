"""An engine that cannot start: its own error ends the run, and the learner does not wait for groups in vain."""

import pytest
import ray

from catalog.errors import ClusterError, PolicyError
from services.fleet import Fleet, _Rollout

pytestmark = pytest.mark.ray


class Queue:
    """Remembers what it was told."""

    def __init__(self):
        self.failed = []

    def fail(self, message):
        self.failed.append(message)


def fleet(started):
    return Fleet(
        queue=Queue(),
        publisher=None,
        catalogues=None,
        catalogue_source=None,
        rollouts=[_Rollout(name="rollout-0", handle=None, started=started)],
        reservation=None,
        max_restarts=0,
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
