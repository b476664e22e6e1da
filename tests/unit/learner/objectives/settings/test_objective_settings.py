"""Combinations of settings without a meaning are refused, with the remedy; those that mean something are
taken.
"""

import pytest
from pydantic import TypeAdapter, ValidationError

from sluice.learner.objectives.settings.objective import (
    CorrectionSettings,
    GbpoSettings,
    GrpoSettings,
    GrpoSrSettings,
    Objective,
    RereSettings,
)
from sluice.learner.rewards.settings import HitReward, RankerReward, RankPenaltyReward

OBJECTIVE = TypeAdapter(Objective)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ratio": "gspo", "old_policy": "batch_start", "correction": {"level": "token"}},
            "correction.level token does not go with ratio gspo.*set correction.level to sequence",
        ),
        (
            {"drop_equal_groups": True, "ground_truth": "inject"},
            "drop_equal_groups does not go with ground_truth=inject",
        ),
        ({"correction": {"level": "token"}}, "set old_policy=batch_start"),
        ({"correction": {"outside": "mask"}}, "outside mask has no effect with level none"),
        ({"rewards": []}, "no component with a weight"),
        ({"rewards": [{"type": "hit", "weight": 0}]}, "no component with a weight"),
        ({"rewards": [{"type": "hit"}, {"type": "hit"}]}, "a type twice"),
        ({"rewards": [{"type": "hit"}, {"type": "relevance"}]}, "there is none: add"),
        ({"rewards": [{"type": "ranker"}, {"type": "relevance"}]}, "its transform is raw: add"),
        (
            {"rewards": [{"type": "hit"}, {"type": "popularity"}], "ground_truth": "inject"},
            "set ground_truth to override or none, or remove the popularity reward",
        ),
    ],
)
def test_contradictions_of_the_group_term(settings, message):
    with pytest.raises(ValidationError, match=message):
        OBJECTIVE.validate_python({"type": "grpo", "grpo": settings})


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"mode": "random"}, "mode random needs random_rate"),
        ({"mode": "random", "random_rate": 0.2, "parts": "difficulty"}, "parts difficulty has no effect"),
        ({"random_rate": 0.2}, "random_rate and random_seed need mode random, and mode is hard"),
        ({"mode": "soft", "random_seed": 1}, "need mode random, and mode is soft"),
        ({"softness": 2.0}, "softness 2.0 needs mode soft, and mode is hard"),
    ],
)
def test_contradictions_of_the_gate(gate, message):
    with pytest.raises(ValidationError, match=message):
        OBJECTIVE.validate_python({"type": "adagrpo", "gate": gate})


@pytest.mark.parametrize("kind", ["mixture", "adagrpo"])
def test_beside_an_nll_no_group_is_dropped(kind):
    with pytest.raises(
        ValidationError, match=r"the NLL is a mean over all prompts.*use objective\.type grpo"
    ):
        OBJECTIVE.validate_python({"type": kind, "grpo": {"drop_equal_groups": True}})


def test_rere_takes_nothing_from_the_ranker():
    with pytest.raises(ValidationError, match=r"use objective\.type grpo"):
        OBJECTIVE.validate_python({"type": "rere", "grpo": {"rewards": [{"type": "ranker"}]}})


def test_an_objective_keeps_its_own_defaults_when_one_setting_is_given():
    rere = OBJECTIVE.validate_python({"type": "rere", "grpo": {"kl_beta": 0}})
    assert rere.grpo.rewards == (HitReward(), RankPenaltyReward())
    source = OBJECTIVE.validate_python({"type": "grpo_sr", "grpo": {"invalid_margin": 0}})
    assert source.grpo.ground_truth == "override" and source.grpo.rewards[0].transform == "sigmoid"
    assert GrpoSettings().rewards == (RankerReward(),)


def test_null_clip_bounds_follow_the_ratio():
    assert GrpoSettings().clips == (0.2, 0.2) and GrpoSettings(ratio="sequence").clips == (0.2, 0.2)
    assert GrpoSettings(ratio="gspo").clips == (3e-4, 4e-4)
    assert GrpoSettings(ratio="gspo", clip_high=0.1).clips == (3e-4, 0.1)
    assert GrpoSettings(clip_high=0.28).clips == (0.2, 0.28)


@pytest.mark.parametrize(
    ("settings", "engine", "reference"),
    [
        (GrpoSettings(), True, True),
        (GrpoSettings(old_policy="batch_start", kl_beta=0), False, False),
        (GrpoSettings(old_policy="batch_start", correction=CorrectionSettings(level="sequence")), True, True),
        (GbpoSettings(), True, False),
        (GrpoSrSettings(), False, False),
        (RereSettings(), True, True),
    ],
)
def test_what_a_term_needs(settings, engine, reference):
    assert settings.uses_engine_probabilities is engine and settings.needs_reference is reference
