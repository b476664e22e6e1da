from sluice.cluster.placement import (
    RoleNeeds,
    as_options,
    describe_shortage,
    learner_resources,
    plan_placement,
)
from sluice.cluster.settings import ClusterSettings


def small(**settings):
    return plan_placement(
        ClusterSettings(learner_cpus=2, **settings),
        rollouts=RoleNeeds(count=2, cpus=1, gpus=1),
        rankers=RoleNeeds(count=1, cpus=0.25),
        learner_workers=2,
    )


def test_every_actor_has_a_bundle_of_what_it_takes():
    bundles = [(bundle.role, bundle.index, bundle.resources) for bundle in small().bundles]
    assert bundles == [
        ("rollout", 0, {"CPU": 1, "GPU": 1}),
        ("rollout", 1, {"CPU": 1, "GPU": 1}),
        ("ranker", 0, {"CPU": 0.25}),
    ]


def test_learners_are_counted_but_not_reserved():
    wanted = small()
    assert [bundle.resources for bundle in wanted.learners] == [{"CPU": 2}, {"CPU": 2}]
    assert wanted.totals == {"CPU": 6.25, "GPU": 2}


def test_labels_pin_roles_to_nodes_without_using_them_up():
    wanted = small(learner_resource="learner_node", rollout_resource="rollout_node")
    assert wanted.bundles[0].resources == {"CPU": 1, "GPU": 1, "rollout_node": 0.001}
    assert wanted.bundles[2].resources == {"CPU": 0.25}
    assert wanted.learners[1].resources == {"CPU": 2, "learner_node": 0.001}
    assert wanted.totals == {"CPU": 6.25, "GPU": 2}


def test_a_task_in_a_learners_place_takes_what_a_learner_takes():
    settings = ClusterSettings(learner_cpus=2, learner_gpus=1, learner_resource="learner_node")
    assert as_options(learner_resources(settings)) == {
        "num_cpus": 2,
        "num_gpus": 1,
        "resources": {"learner_node": 0.001},
    }


def test_a_shortage_says_what_was_asked_for_and_what_there_is():
    text = describe_shortage(small(), {"CPU": 4, "GPU": 2}, {"CPU": 1.5, "GPU": 2}, 30)
    assert "within 30 s" in text
    assert "2 x rollout with 1 CPU + 1 GPU; 1 x ranker with 0.25 CPU; 2 x learner with 2 CPU" in text
    assert "in all 6.25 CPU + 2 GPU" in text
    assert "CPU 4 (1.5 free), GPU 2 (2 free)" in text
    assert "lower rollout.actors" in text


def test_a_resource_that_no_node_has_is_named():
    text = describe_shortage(small(rollout_resource="rollout_node"), {"CPU": 40}, {"CPU": 40}, 30)
    assert "No node has the resource(s) GPU, rollout_node" in text
