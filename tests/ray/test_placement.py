import pytest
import ray

from sluice.catalog.errors import ClusterError
from sluice.cluster.placement import RoleNeeds, plan_placement, reserve_placement
from sluice.cluster.session import connect_cluster
from sluice.cluster.settings import ClusterSettings

pytestmark = pytest.mark.ray


class Where:
    def bundle(self) -> tuple[str | None, dict]:
        return (
            ray.get_runtime_context().get_placement_group_id(),
            ray.get_runtime_context().get_assigned_resources(),
        )


def wanted(rollout_cpus: float, learner_cpus: float = 1):
    return plan_placement(
        ClusterSettings(learner_cpus=learner_cpus),
        rollouts=RoleNeeds(count=2, cpus=rollout_cpus),
        rankers=RoleNeeds(count=1, cpus=0),
        learner_workers=1,
    )


def test_actors_run_in_the_places_reserved_for_them(cluster):
    reservation = reserve_placement(wanted(1.5), timeout_s=30)
    try:
        remote = ray.remote(Where)
        rollout = remote.options(**reservation.options("rollout", 1)).remote()
        ranker = remote.options(**reservation.options("ranker", 0)).remote()
        group, resources = ray.get(rollout.bundle.remote(), timeout=60)
        assert group is not None
        assert resources["CPU"] == 1.5
        assert ray.get(ranker.bundle.remote(), timeout=60)[0] is None  # it needs nothing, so it has no place
    finally:
        reservation.release()


@pytest.mark.parametrize(("rollout_cpus", "learner_cpus"), [(3, 1), (1.5, 2)])
def test_a_plan_that_does_not_fit_is_refused_and_leaves_nothing_reserved(cluster, rollout_cpus, learner_cpus):
    with pytest.raises(ClusterError, match=rf"2 x rollout with {rollout_cpus} CPU; .*The cluster has CPU 4 "):
        reserve_placement(wanted(rollout_cpus, learner_cpus), timeout_s=1)
    reserve_placement(wanted(1.5), timeout_s=30).release()


def test_a_process_that_has_joined_a_cluster_stays_there(cluster):
    facts = connect_cluster()
    assert (facts.nodes, facts.resources["CPU"]) == (1, 4.0)
