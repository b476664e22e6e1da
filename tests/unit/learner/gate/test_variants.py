import math
from dataclasses import fields, replace

import pytest
import torch

from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.gate.variants import admission_chance
from sluice.learner.objectives.adagrpo import AdaGrpoLoss
from sluice.learner.objectives.mixture import MixtureLoss
from sluice.learner.objectives.settings.objective import GrpoSettings
from tests.unit.learner.learner_cases import NAN, objective_input, one_group, random_batch
from tests.unit.learner.objective_cases import scores_of


def rows(batch, index):
    return replace(
        batch,
        **{
            field.name: value[index]
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), torch.Tensor)
        },
    )


def test_chance_depends_on_the_group_alone():
    batch = random_batch(prompts=6)
    whole = admission_chance(batch, 0)
    assert len(set(whole.tolist())) == 6
    alone = torch.cat([admission_chance(rows(batch, slice(row, row + 1)), 0) for row in range(6)])
    assert torch.equal(alone, whole)
    assert torch.equal(admission_chance(rows(batch, [3, 1]), 0), whole[[3, 1]])
    padded = replace(batch, history_BT=torch.nn.functional.pad(batch.history_BT, (0, 5), value=9))
    assert torch.equal(admission_chance(padded, 0), whole)


@pytest.mark.parametrize("name", ["history_BT", "target_BL", "candidates_BKL"])
def test_every_token_and_its_place_matter_to_chance(name):
    batch = random_batch(prompts=1)
    before = admission_chance(batch, 0)
    assert admission_chance(batch, 1) != before
    tokens = getattr(batch, name)
    changed = tokens.clone()
    changed.view(-1)[-1] += 1
    assert admission_chance(replace(batch, **{name: changed}), 0) != before
    assert admission_chance(replace(batch, **{name: tokens.flip(-1)}), 0) != before


def test_chance_is_uniform():
    numbers = torch.cat([admission_chance(random_batch(prompts=64, seed=seed), 7) for seed in range(20)])
    assert numbers.min() >= 0 and numbers.max() < 1
    for bound in (0.1, 0.3, 0.5, 0.9):
        deviation = math.sqrt(bound * (1 - bound) / 1280)
        assert abs((numbers < bound).double().mean() - bound) < 4 * deviation
    other = torch.cat([admission_chance(random_batch(prompts=64, seed=seed), 8) for seed in range(20)])
    assert abs(torch.corrcoef(torch.stack([numbers, other]))[0, 1]) < 4 / math.sqrt(1280)


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_the_random_gate_admits_its_rate(rate, share):
    batch = random_batch(prompts=512)
    result = compute_gate(batch, torch.full((512,), -5.0), GateSettings(mode="random", random_rate=rate))
    assert result.gate_B.unique().tolist() == ([0.0, 1.0] if 0 < rate < 1 else [rate])
    assert result.gate_B.mean().item() == pytest.approx(share, abs=4 * math.sqrt(rate * (1 - rate) / 512))
    seeded = compute_gate(
        batch, torch.full((512,), -5.0), GateSettings(mode="random", random_rate=rate, random_seed=3)
    )
    assert torch.equal(seeded.gate_B, result.gate_B) is (rate in (0, 1))


def test_the_random_gate_still_reports_what_the_real_one_saw():
    target = torch.full((4,), -5.0)
    batch = random_batch()
    random, hard = (
        compute_gate(batch, target, s) for s in (GateSettings(mode="random", random_rate=0.5), GateSettings())
    )
    for name in ("difficulty_B", "discriminability_B", "policy_rank_B", "ranker_rank_B"):
        assert torch.equal(getattr(random, name), getattr(hard, name))


# Head 2 of 4. GT: policy rank 3, ranker rank 2 (3.5 behind 4); the distractor at 0 is on place 6, 4 beyond
# its bound.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.3760984),  # sigma(.5) sigma(.5) sigma(3.5)
        ({"softness": 2.0}, 0.2692532),  # of half the margins
        ({"parts": "difficulty"}, 0.6224593),
        ({"parts": "discriminability"}, 0.6042137),  # sigma(.5) sigma(3.5)
    ],
)
def test_soft_gate(settings, expected):
    batch = one_group(target_scores_B=torch.tensor([3.5]))
    result = compute_gate(batch, torch.tensor([-2.5]), GateSettings(mode="soft", tau=0.5, **settings))
    assert result.gate_B.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("distractors", "rule", "margin"),
    [
        ([0.0, 3.7, NAN], "below_head", 0),  # place 2 of the head's 2: the nearest counts
        ([NAN, NAN], "below_head", math.inf),  # nothing to fail with
        ([0.0], "within_bottom", 2),  # last of 6, and the last 2 are meant
        ([1.5], "within_bottom", 1),
        ([2.2], "within_bottom", 0),
    ],
)
def test_the_soft_gate_takes_the_distractor_nearest_to_failing(distractors, rule, margin):
    batch = one_group(target_scores_B=torch.tensor([3.5]), distractor_scores_BJ=torch.tensor([distractors]))
    settings = GateSettings(mode="soft", tau=0.5, rho=0.5, distractor_rule=rule, parts="discriminability")
    expected = 0.6224593 / (1 + math.exp(0.5 - margin))
    assert compute_gate(batch, torch.tensor([-2.5]), settings).gate_B.item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("parts", "distractors"),
    [
        ("difficulty", {}),
        *(
            (parts, {"rho": 0.75, "distractor_rule": rule})
            for parts in ("both", "discriminability")
            for rule in ("below_head", "within_bottom")
        ),
    ],
)
def test_without_softness_the_soft_gate_is_the_hard_one(parts, distractors):
    batch = random_batch(prompts=64, candidates=8, target_scores_B=torch.randn(64) + 1)
    target = torch.linspace(-12, -4, 64)
    settings = {"tau": 0.5, "parts": parts, **distractors}
    hard = compute_gate(batch, target, GateSettings(**settings)).gate_B
    soft = compute_gate(batch, target, GateSettings(mode="soft", softness=1e-3, **settings)).gate_B
    assert 0 < hard.sum() < 64
    torch.testing.assert_close(soft, hard, atol=1e-6, rtol=0)


def test_a_ground_truth_without_a_score_is_refused_softly_too():
    batch = one_group(target_scores_B=torch.tensor([NAN]))
    result = compute_gate(batch, torch.tensor([-2.5]), GateSettings(mode="soft", tau=0.5))
    assert result.gate_B.item() == 0 and not result.admitted_B.item()


def test_a_soft_gate_multiplies_the_term():
    batch = random_batch(target_scores_B=torch.full((4,), 50.0))
    log_probs = (
        -3 * torch.rand(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ) - 1
    scores, settings = scores_of(log_probs), GrpoSettings(kl_beta=0)
    gate_settings = GateSettings(mode="soft", tau=0.5)
    terms = AdaGrpoLoss(0.7, settings, gate_settings)(objective_input(batch, scores, scores, None))
    gates = compute_gate(batch, log_probs[:, 0].sum(-1), gate_settings).gate_B
    assert gates.unique().numel() > 1 and gates.min() > 0 and gates.max() < 1
    parts = [(rows(batch, [row]), scores_of(log_probs[[row]])) for row in range(4)]
    each = [MixtureLoss(0.7, settings)(objective_input(part, of_it, of_it, None)) for part, of_it in parts]
    expected = [
        (terms.metrics["nll"][0] + 0.7 * g * terms.metrics["grpo"][0]).item()
        for terms, g in zip(each, gates.double(), strict=True)
    ]
    assert terms.loss.item() == pytest.approx(sum(expected) / 4, abs=1e-7)
    assert terms.metrics["gate_rate"].tolist() == pytest.approx([gates.sum().item(), 4.0], abs=1e-6)
