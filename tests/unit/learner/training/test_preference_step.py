"""The objectives on logged rewards, preferences and a value head, through the learner's step."""

import math

import pytest
import torch

from sluice.learner.objectives.a_sft import AdvantageSftLoss
from sluice.learner.objectives.cql import CqlLoss
from sluice.learner.objectives.dpo import DpoLoss
from sluice.learner.objectives.ipo import IpoLoss
from sluice.learner.objectives.ppo import PpoLoss
from sluice.learner.objectives.reward_weighted_bc import RewardWeightedBcLoss
from sluice.learner.objectives.settings.logged import AdvantageSftObjective, CqlObjective, ValueHeadBaseline
from sluice.learner.objectives.settings.preference import (
    DpoObjective,
    IntervalPairs,
    IpoObjective,
    LoggedPairs,
    PpoObjective,
    SelfPairs,
)
from sluice.learner.settings import LearnerSettings
from sluice.learner.training.step import LearnerStep
from tests.unit.learner.learner_cases import NAN, in_double, tiny_policy
from tests.unit.learner.preference_cases import rich_batch

OBJECTIVES = {
    "reward_weighted_bc": RewardWeightedBcLoss(0.3),
    "a_sft, candidates": AdvantageSftLoss(AdvantageSftObjective()),
    "a_sft, value head": AdvantageSftLoss(AdvantageSftObjective(baseline=ValueHeadBaseline())),
    "dpo, intervals": DpoLoss(DpoObjective(pairs=IntervalPairs(per_prompt=3))),
    "dpo, logged": DpoLoss(DpoObjective(pairs=LoggedPairs(per_prompt=2), nll_weight=0.2)),
    "ipo, self": IpoLoss(IpoObjective(pairs=SelfPairs())),
    "ppo": PpoLoss(PpoObjective(value_clip=0.05)),
    "cql": CqlLoss(CqlObjective(scale=0.7)),
}
SETTINGS = LearnerSettings(
    prompts_per_step=6, warmup_steps=0, lr=1e-2, max_grad_norm=1e9, updates_per_batch=2
)


def uneven_batch():
    """Six prompts of mixed lengths, two of them without a reward, one without a pair and one without an
    item.
    """
    batch = rich_batch()
    batch.candidate_scores_BK[1] = 1.0
    batch.candidate_items_BK[1] = batch.target_items_B[1]
    batch.candidate_items_BK[4], batch.candidate_scores_BK[4], batch.candidate_values_BK[4] = -1, NAN, NAN
    return batch


def trained(objective, size, batch=None):
    """The gradients given to the first of two updates, the parameters after both, and the metrics."""
    learner = LearnerStep(
        in_double(tiny_policy().model),
        objective=objective,
        settings=SETTINGS.model_copy(update={"micro_batch_prompts": size}),
        reference=in_double(tiny_policy(seed=1).model),
    )
    steps = []
    parameters = learner.optimizer.param_groups[0]["params"] + learner.optimizer.param_groups[1]["params"]
    learner.optimizer.register_step_pre_hook(lambda *_: steps.append([p.grad.clone() for p in parameters]))
    metrics = learner.update(uneven_batch() if batch is None else batch)
    return steps[0], [parameter.detach().clone() for parameter in parameters], metrics


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_give_the_gradient_and_metrics_of_the_full_batch(name):
    gradients, parameters, metrics = trained(OBJECTIVES[name], None)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for size in (1, 4):
        found, moved, reported = trained(OBJECTIVES[name], size)
        for one, other in zip(found, gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
        for one, other in zip(moved, parameters, strict=True):
            torch.testing.assert_close(
                one, other, atol=1e-6, rtol=1e-6
            )  # Adam divides tiny gradients by themselves
        assert reported == pytest.approx(metrics, abs=1e-8, nan_ok=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_with_nothing_to_learn_from_leaves_the_policy_alone(name):
    nothing = {
        "logged_rewards_B": torch.full((6,), NAN),
        "candidate_items_BK": torch.full((6, 4), 5000 if "logged" in name or "intervals" in name else -1),
        "candidate_scores_BK": torch.full((6, 4), NAN),
    }
    objective = RewardWeightedBcLoss(0.0) if name == "reward_weighted_bc" else OBJECTIVES[name]
    gradients, _, metrics = trained(objective, 4, rich_batch(**nothing))
    assert max(gradient.abs().max() for gradient in gradients) == 0
    assert metrics["nll"] > 0 and math.isnan(metrics["loss"])


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.needs_values])
def test_the_value_head_learns(name):
    *_, metrics = trained(OBJECTIVES[name], None)
    key = {"ppo": "value_loss", "cql": "q_error"}.get(name, "value_error")
    learner = LearnerStep(
        tiny_policy().model,
        objective=OBJECTIVES[name],
        settings=SETTINGS,
        reference=tiny_policy(seed=1).model,
    )
    history = [learner.update(rich_batch())[key] for _ in range(15)]
    assert metrics[key] > 0 and history[-1] < history[0]
