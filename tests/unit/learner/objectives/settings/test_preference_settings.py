import pytest
from pydantic import TypeAdapter, ValidationError

from sluice.learner.objectives.a_sft import AdvantageSftLoss
from sluice.learner.objectives.cql import CqlLoss
from sluice.learner.objectives.dpo import DpoLoss
from sluice.learner.objectives.ipo import IpoLoss
from sluice.learner.objectives.ppo import PpoLoss
from sluice.learner.objectives.reward_weighted_bc import RewardWeightedBcLoss
from sluice.learner.objectives.settings.objective import Objective
from sluice.learner.objectives.settings.preference import IntervalPairs, LoggedPairs, SelfPairs
from sluice.learner.training.objective import build_objective
from sluice.services.config import RunConfig

PARSE = TypeAdapter(Objective).validate_python


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("reward_weighted_bc", RewardWeightedBcLoss),
        ("a_sft", AdvantageSftLoss),
        ("dpo", DpoLoss),
        ("ipo", IpoLoss),
        ("ppo", PpoLoss),
        ("cql", CqlLoss),
    ],
)
def test_the_type_alone_builds_an_objective(kind, loss):
    assert type(build_objective(PARSE({"type": kind}))) is loss


def test_settings_reach_the_objectives():
    assert build_objective(PARSE({"type": "reward_weighted_bc", "missing_weight": 0.5})).missing_weight == 0.5
    head = build_objective(PARSE({"type": "a_sft", "baseline": {"type": "value_head", "weight": 0.1}}))
    assert head.needs_values and not head.needs_groups and head.settings.baseline.weight == 0.1
    own = {"type": "self_generated", "invalid_margin": 0.0}
    dpo = build_objective(PARSE({"type": "dpo", "beta": 0.3, "pairs": own, "nll_weight": 0.2}))
    assert (dpo.beta, dpo.pairs, dpo.nll_weight) == (0.3, SelfPairs(invalid_margin=0.0), 0.2)
    sure = {"type": "ranker_intervals", "z": 2.0, "ground_truth": False}
    ipo = build_objective(PARSE({"type": "ipo", "tau": 0.5, "pairs": sure}))
    assert (ipo.tau, ipo.pairs, ipo.nll_weight) == (0.5, IntervalPairs(z=2.0, ground_truth=False), 0.0)
    assert build_objective(PARSE({"type": "dpo"})).pairs == LoggedPairs()
    assert not build_objective(PARSE({"type": "ppo", "kl_coef": 0.0, "clip": float("inf")})).needs_reference
    assert build_objective(PARSE({"type": "cql", "scale": 2.0})).settings.scale == 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "reward_weighted_bc", "missing_weight": -1},
        {"type": "a_sft", "beta": 0},
        {"type": "a_sft", "max_weight": 0.5},
        {"type": "a_sft", "baseline": {"type": "candidates", "weight": 0.5}},
        {"type": "dpo", "beta": 0},
        {"type": "dpo", "pairs": {"type": "logged_over_generated", "z": 1.0}},
        {"type": "dpo", "pairs": {"type": "self_generated", "per_prompt": 0}},
        {"type": "ipo", "tau": 0},
        {"type": "ppo", "clip": 0},
        {"type": "ppo", "gae_lambda": 1.5},
        {"type": "cql", "scale": 0},
        {"type": "cql", "alpha": -1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PARSE(wrong)


def run(**parts):
    return RunConfig.model_validate({"name": "a", **parts})


def test_cql_takes_candidates_that_were_drawn_from_all_items():
    for decode in ({"kind": "beam"}, {"top_p": 0.9}):
        with pytest.raises(ValidationError, match="set kind to sample and top_p to 1"):
            run(objective={"type": "cql"}, rollout={"decode": decode})
        run(objective={"type": "dpo"}, rollout={"decode": decode})
    run(objective={"type": "cql"}, rollout={"decode": {"kind": "sample", "temperature": 0.7}})


def test_intervals_need_an_ensemble():
    intervals = {"type": "ipo", "pairs": {"type": "ranker_intervals"}}
    with pytest.raises(ValidationError, match=r"ranker\.ensemble is 1"):
        run(objective=intervals, ranker={"ensemble": 1})
    run(objective=intervals, ranker={"ensemble": 2})
    run(objective=intervals, ranker={"ensemble": 1, "use": "mine:Ranker"})
    run(objective={"type": "ipo"}, ranker={"ensemble": 1})


@pytest.mark.parametrize(
    "objective",
    [
        {"type": "a_sft"},
        {"type": "cql"},
        {"type": "grpo", "grpo": {"rewards": [{"type": "logged"}]}},
        {"type": "ppo", "rewards": [{"type": "ranker"}, {"type": "logged"}]},
        {"type": "dpo", "pairs": {"type": "self_generated", "rewards": [{"type": "logged"}]}},
    ],
)
def test_logged_rewards_must_be_named_where_they_are_learned_from(objective):
    with pytest.raises(ValidationError, match=r"data\.reward is none"):
        run(objective=objective, data={"reward": "none"})
    assert run(objective=objective).needs_logged_reward
    assert not run(objective={"type": "grpo"}, data={"reward": "none"}).needs_logged_reward


def test_nobody_drew_an_injected_item():
    injected = {"type": "grpo", "grpo": {"ground_truth": "inject"}}
    with pytest.raises(ValidationError, match="that nobody drew"):
        run(objective=injected, rollout={"decode": {"kind": "stochastic_beam"}})
    run(objective=injected, rollout={"decode": {"kind": "sample"}})
