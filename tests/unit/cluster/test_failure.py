import pytest

from sluice.cluster.failure import decide_restart


@pytest.mark.parametrize(
    ("restarts", "restart", "after"), [(0, True, 1), (1, True, 2), (2, False, 2), (3, False, 3)]
)
def test_a_component_is_started_again_until_its_bound(restarts, restart, after):
    decision = decide_restart(
        "rollout-0",
        restarts=restarts,
        bound=2,
        setting="cluster.max_actor_restarts",
        reason="OutOfMemory: 3 GiB",
    )
    assert (decision.restart, decision.restarts) == (restart, after)
    assert "rollout-0" in decision.message
    assert "OutOfMemory: 3 GiB" in decision.message


def test_giving_up_names_the_bound_and_the_setting():
    decision = decide_restart(
        "the learner", restarts=2, bound=2, setting="cluster.max_learner_restarts", reason="boom"
    )
    assert decision.message == (
        "the learner failed after 2 restart(s), the most that cluster.max_learner_restarts = 2 allows. "
        "Last failure: boom. Remove its cause, or raise cluster.max_learner_restarts"
    )


def test_no_restarts_at_all_is_a_bound_too():
    assert not decide_restart("x", restarts=0, bound=0, setting="s", reason="r").restart
