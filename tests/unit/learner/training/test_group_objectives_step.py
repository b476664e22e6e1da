"""Through the learner: micro-batches, padding and updates on one batch, for every group-relative
objective.
"""

import pytest
import torch
from pydantic import TypeAdapter

from sluice.learner.objectives.settings.objective import Objective
from sluice.learner.training.objective import build_objective
from tests.unit.learner.learner_cases import random_batch
from tests.unit.learner.training.test_step import SETTINGS, captured_gradients, learner_of

SEQUENCE = {"old_policy": "batch_start", "correction": {"level": "sequence", "outside": "mask"}}
REWARDS = [
    {"type": "ranker", "transform": "rank"},
    {"type": "relevance", "like": "history"},
    {"type": "hit"},
    {"type": "rank_penalty"},
    {"type": "diversity", "tokens": 1},
    {"type": "popularity", "weight": 0.1},
    {"type": "logged", "weight": 0.2},
]
OBJECTIVES = {
    "dapo": {"type": "grpo", "grpo": {"drop_equal_groups": True, "clip_high": 0.28, "kl_beta": 0}},
    "gspo": {"type": "grpo", "grpo": {"ratio": "gspo", "advantage": "dr_grpo", **SEQUENCE}},
    "rewards": {"type": "grpo", "grpo": {"ratio": "sequence", "advantage": "rloo", "rewards": REWARDS}},
    "random": {"type": "adagrpo", "gate": {"mode": "random", "random_rate": 0.5}},
    "soft": {"type": "adagrpo", "gate": {"mode": "soft", "tau": 0.5}},
    "grpo_sr": {"type": "grpo_sr", "alpha": 0.3},
    "ecpo": {"type": "ecpo", "grpo": {"early_clip_margin": 0.05}},
    "gbpo": {"type": "gbpo"},
    "rere": {"type": "rere"},
    "normalised": {"type": "grpo", "grpo": {"inclusion_weights": "normalised"}},
    "unbiased": {"type": "mixture", "grpo": {"advantage": "rloo"}},
}


def batch_for(name):
    """Six prompts with histories of mixed length; the first hits, two of them have equal rewards."""
    batch = random_batch(prompts=6)
    values = dict(vars(batch))
    values["candidate_items_BK"][0, 1] = 5000
    values["candidate_items_BK"][2] = 7  # every candidate an item, all with one score
    values["candidate_items_BK"][4] = 7
    values["candidate_scores_BK"][[2, 4]] = 0.5
    values["logged_rewards_B"] = torch.tensor([4.0, float("nan"), 3.0, 1.0, 2.0, 5.0])
    values["candidate_popularity_BK"] = torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    if name in ("normalised", "unbiased"):
        values["inclusion_log_probs_BK"] = values["behaviour_log_probs_BKL"].sum(-1) * 0.8
    return type(batch)(**values)


def objective_of(name):
    return build_objective(TypeAdapter(Objective).validate_python(OBJECTIVES[name]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_give_the_gradient_and_metrics_of_the_full_batch(name):
    found = {}
    for prompts in (None, 1, 4):
        settings = SETTINGS.model_copy(update={"micro_batch_prompts": prompts, "prompts_per_step": 6})
        learner = learner_of(objective_of(name), settings)
        steps = captured_gradients(learner)
        found[prompts] = learner.update(batch_for(name)), steps[0]
    assert max(gradient.abs().max() for gradient in found[None][1]) > 1e-3
    for prompts in (1, 4):
        for full, parts in zip(found[None][1], found[prompts][1], strict=True):
            torch.testing.assert_close(parts, full, atol=1e-9, rtol=1e-9)
        assert found[prompts][0] == pytest.approx(found[None][0], abs=1e-9, nan_ok=True)
    if name == "dapo":
        assert found[None][0]["kept"] == pytest.approx(4 / 6)
    if name == "random":
        assert 0 < found[None][0]["gate_rate"] < 1
    if name == "rewards":
        assert {f"reward/{reward['type']}" for reward in REWARDS} <= set(found[None][0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gate_the_rewards_and_the_advantages_hold_for_all_updates_on_a_batch(name):
    """With a learning rate that moves nothing, further updates find what the first one found."""
    settings = SETTINGS.model_copy(update={"prompts_per_step": 6, "lr": 1e-30})
    metrics = []
    for updates in (1, 3):
        learner = learner_of(objective_of(name), settings.model_copy(update={"updates_per_batch": updates}))
        metrics.append(learner.update(batch_for(name)))
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-9, nan_ok=True)
