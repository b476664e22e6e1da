"""The gate by user: the cut, the weight, what stands for an unknown trust, with the other parts and alone."""

import math

import pytest
import torch
from pydantic import ValidationError

from sluice.catalog.decoding import Decoding
from sluice.learner.gate.gate import compute_gate, trust_weight
from sluice.learner.gate.settings import GateSettings, TrustSettings
from sluice.learner.objectives.adagrpo import AdaGrpoLoss, gate_metrics
from sluice.learner.objectives.settings.objective import GrpoSettings
from tests.unit.learner.learner_cases import NAN, one_group, random_batch

HARD, EASY = -2.5, -0.5  # log-probs of GT: rank 3 of the four candidates, and 1
TRUSTED, REFUSED = 0.9, 0.3


def gate_of(of_user, *, target=HARD, score=5.0, distractor=0.0, **settings):
    batch = one_group(
        target_scores_B=torch.tensor([score]),
        distractor_scores_BJ=torch.tensor([[distractor]]),
        trust_B=torch.tensor([of_user]),
    )
    gate = GateSettings(**{"tau": 0.5, "trust": TrustSettings()} | settings)
    return compute_gate(batch, torch.tensor([target]), gate).gate_B.item()


def test_the_cut_itself_is_refused():
    trust = torch.tensor([0.65, math.nextafter(0.65, 1), 0.7, 0.6, 1.0, 0.0, NAN], dtype=torch.float64)
    weights = trust_weight(trust, TrustSettings())
    torch.testing.assert_close(
        weights, torch.tensor([0, 1, 1, 0, 1, 0, NAN], dtype=torch.float64), equal_nan=True
    )
    assert trust_weight(torch.tensor([0.5]), TrustSettings(above=0.5)).item() == 0


def test_without_a_cut_trust_is_a_weight_from_chance_on():
    trust = torch.tensor([0.0, 0.5, 0.625, 0.75, 1.0, NAN])
    torch.testing.assert_close(
        trust_weight(trust, TrustSettings(above=None)),
        torch.tensor([0.0, 0.0, 0.25, 0.5, 1.0, NAN]),
        equal_nan=True,
    )


@pytest.mark.parametrize(
    ("parts", "needs_difficulty", "needs_discriminability"),
    [
        ("both", True, True),
        ("difficulty", True, False),
        ("discriminability", False, True),
        ("trust", False, False),
    ],
)
def test_trust_goes_with_the_parts_or_alone(parts, needs_difficulty, needs_discriminability):
    for difficult in (True, False):
        for told_apart in (True, False):
            passes = (difficult or not needs_difficulty) and (told_apart or not needs_discriminability)
            of_prompt = {
                "target": HARD if difficult else EASY,
                "distractor": 0.0 if told_apart else 9.0,
                "parts": parts,
            }
            assert gate_of(TRUSTED, **of_prompt) == passes
            assert gate_of(REFUSED, **of_prompt) == 0
            # For a new user the published discriminability stands for trust.
            assert gate_of(NAN, **of_prompt) == (passes and told_apart)


def test_a_graded_trust_multiplies_the_hard_and_the_soft_gate():
    graded = {"trust": TrustSettings(above=None)}
    assert gate_of(0.75, **graded) == 0.5
    assert gate_of(0.75, target=EASY, **graded) == 0
    soft = gate_of(1.0, mode="soft", **graded)
    assert 0 < soft < 1
    assert gate_of(0.75, mode="soft", **graded) == pytest.approx(soft / 2)
    assert gate_of(NAN, mode="soft", **graded) == pytest.approx(soft)
    assert gate_of(1.0, mode="soft", parts="trust", **graded) == 1
    # Each half of the soft gate by itself: a new user has difficulty and discriminability once.
    halves = [gate_of(1.0, mode="soft", parts=half, **graded) for half in ("difficulty", "discriminability")]
    assert gate_of(NAN, mode="soft", parts="difficulty", **graded) == pytest.approx(math.prod(halves))
    assert gate_of(NAN, mode="soft", parts="trust", **graded) == pytest.approx(halves[1])


def test_a_gate_that_does_not_ask_for_trust_does_not_look_at_it():
    assert gate_of(REFUSED, trust=None) == 1
    assert gate_of(REFUSED, trust=None, mode="random", tau=0.25, random_rate=1.0) == 1


def test_metrics_of_trust():
    batch = random_batch(trust_B=torch.tensor([0.9, 0.7, 0.2, NAN]))
    target = torch.full((4,), -5.0)
    metrics = gate_metrics(compute_gate(batch, target, GateSettings(trust=TrustSettings())))
    assert {
        name: (metrics[name][0] / metrics[name][1]).item() for name in ("trust", "trusted", "trust_unknown")
    } == pytest.approx({"trust": 0.6, "trusted": 2 / 3, "trust_unknown": 1 / 4})
    graded = gate_metrics(compute_gate(batch, target, GateSettings(trust=TrustSettings(above=None))))
    assert graded["trusted"].tolist() == [1, 3]  # 0.8, 0.4 and 0: half and more is admitted
    assert "trust" not in gate_metrics(compute_gate(batch, target, GateSettings()))


@pytest.mark.parametrize(
    ("parts", "needed"), [("both", True), ("difficulty", True), ("discriminability", False), ("trust", False)]
)
def test_difficulty_alone_needs_a_forward_of_the_ground_truth(parts, needed):
    gate = GateSettings(parts=parts, trust=TrustSettings())
    batch = random_batch(decoding=Decoding(kind="sample", candidates=4))
    assert AdaGrpoLoss(1.0, GrpoSettings(), gate).needs_clean_target(batch) is needed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": "trust"}, "parts trust asks for trust alone, and trust is not set: set trust to {}"),
        ({"mode": "random", "random_rate": 0.5, "trust": {}}, "has no effect with mode random"),
        ({"trust": {"items": 2}}, "at_least 3 is more than the 2 items .* set at_least to 2 or less"),
        ({"trust": {"above": 1.0}}, "less than 1"),
        ({"parts": "difficulty", "rho": 0.7}, "has no effect with parts difficulty"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        GateSettings.model_validate(settings)


def test_distractors_count_with_difficulty_where_trust_may_be_unknown():
    assert GateSettings.model_validate({"parts": "difficulty", "rho": 0.7, "trust": {}}).rho == 0.7
