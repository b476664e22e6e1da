import math
from dataclasses import replace

import pytest
import torch

from sluice.learner.objectives.dpo import DpoLoss
from sluice.learner.objectives.ipo import IpoLoss
from sluice.learner.objectives.settings.preference import (
    DpoObjective,
    IntervalPairs,
    IpoObjective,
    LoggedPairs,
    SelfPairs,
)
from tests.unit.learner.learner_cases import objective_input, one_group, random_batch
from tests.unit.learner.preference_cases import (
    assert_nothing_to_learn,
    double,
    means,
    per_branch,
    rich_batch,
    scores_of,
)

TWO = LoggedPairs(per_prompt=2)  # (0, 1) with margin 3 and (0, 2) with margin 0
NOW, REFERENCE = per_branch(-3, -6, -3, -9, -9), per_branch(-4.5, -4.5, -4.5, -1, -1)
SOURCES = (IntervalPairs(per_prompt=3), LoggedPairs(per_prompt=2), SelfPairs(per_prompt=2))


def of(objective, batch=None, now=NOW, reference=REFERENCE, **scores):
    """What the objective gives for one group."""
    return objective(
        objective_input(
            one_group() if batch is None else batch, scores_of(now, **scores), scores_of(now), reference
        )
    )


def dpo(**changes):
    return DpoLoss(DpoObjective(**({"beta": 0.5, "pairs": TWO} | changes)))


def ipo(**changes):
    return IpoLoss(IpoObjective(**({"tau": 0.25, "pairs": TWO} | changes)))


def test_dpo():
    # -log sigmoid(1.5) and -log sigmoid(0)
    assert of(dpo()).loss.item() == pytest.approx((0.20141328 + 0.69314718) / 2, abs=1e-8)
    assert of(dpo(beta=2.0)).loss.item() == pytest.approx(
        (math.log(1 + math.exp(-6)) + math.log(2)) / 2, abs=1e-12
    )


def test_ipo():
    # (3 - 2)^2 and (0 - 2)^2
    assert of(ipo()).loss.item() == pytest.approx(2.5, abs=1e-12)
    assert of(ipo(tau=0.1)).loss.item() == pytest.approx((4 + 25) / 2, abs=1e-12)


@pytest.mark.parametrize("pairs", SOURCES)
@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_dpo_at_the_reference_is_log_2(pairs, beta):
    torch.manual_seed(0)
    now = -torch.rand(6, 5, 3, dtype=torch.float64)
    loss = of(DpoLoss(DpoObjective(beta=beta, pairs=pairs)), rich_batch(), now, now).loss
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_the_minimum_of_ipo_is_where_every_margin_is_one_over_two_tau(tau):
    now = per_branch(-1.0, -1 - 1 / (2 * tau), -1 - 1 / (2 * tau), -9, -9).requires_grad_()
    terms = of(ipo(tau=tau), now=now, reference=torch.zeros_like(now))
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(0, abs=1e-24) and now.grad.abs().max() < 1e-12
    assert means(terms)["margin"] == pytest.approx(1 / (2 * tau))


@pytest.mark.parametrize("objective", [dpo(), ipo()])
def test_the_chosen_rises_and_the_rejected_falls(objective):
    now = NOW.clone().requires_grad_()
    of(objective, now=now).loss.backward()
    descent = -now.grad[0].sum(dim=-1)
    assert descent[0] > 0 and descent[2] < 0 and descent[3:].abs().max() == 0


@pytest.mark.parametrize("objective", [dpo, ipo])
def test_the_anchor_is_the_nll_of_the_chosen(objective):
    plain, anchored = of(objective()).loss.item(), of(objective(nll_weight=0.1)).loss.item()
    assert anchored - plain == pytest.approx(0.3, abs=1e-12)
    own = SelfPairs(per_prompt=1)  # candidate 4, whose log-prob is -9
    plain, anchored = (
        of(objective(pairs=own)).loss.item(),
        of(objective(pairs=own, nll_weight=0.1)).loss.item(),
    )
    assert anchored - plain == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("objective", [dpo, ipo])
def test_the_mean_is_over_pairs_not_prompts(objective):
    items = torch.tensor([[1, 2, 3, 4], [5000, 5000, 5000, 7], [5000] * 4])
    batch = random_batch(prompts=3, candidate_items_BK=items)  # four, one and no pair
    torch.manual_seed(0)
    now, reference = (-torch.rand(3, 5, 3, dtype=torch.float64) for _ in range(2))
    loss = objective(pairs=LoggedPairs())
    terms = of(loss, batch, now, reference)
    gain = (now - reference).sum(-1)
    margins = torch.cat([gain[0, 0] - gain[0, 1:], gain[1, 0] - gain[1, 4:]])
    assert loss.normaliser(batch).item() == 5
    assert terms.loss.item() == pytest.approx(loss.of_margin(margins).sum().item() / 5, abs=1e-12)
    assert terms.metrics["pairs"].tolist() == [5, 3] and terms.metrics["paired_share"].tolist() == [2, 3]


@pytest.mark.parametrize("objective", [dpo, ipo])
def test_room_for_more_pairs_changes_nothing(objective):
    batch = rich_batch()
    torch.manual_seed(0)
    now, reference = (-torch.rand(6, 5, 3, dtype=torch.float64) for _ in range(2))
    losses = [
        of(objective(pairs=SelfPairs(per_prompt=most), nll_weight=0.2), batch, now, reference).loss.item()
        for most in (3, 25, 99)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-15)


@pytest.mark.parametrize("objective", [dpo, ipo])
def test_no_pair_no_loss(objective):
    now = NOW.clone().requires_grad_()
    batch = one_group(candidate_scores_BK=torch.ones(1, 4))
    assert_nothing_to_learn(
        objective(pairs=SelfPairs(), nll_weight=0.1), batch, scores_of(now), scores_of(now), REFERENCE
    )


@pytest.mark.parametrize("objective", [dpo, ipo])
def test_a_forbidden_ground_truth_outside_the_pairs_does_no_harm(objective):
    now = NOW.clone()
    now[0, 0] = -torch.inf
    now.requires_grad_()
    loss = objective(pairs=SelfPairs(per_prompt=4), nll_weight=0.1)
    terms = of(loss, now=now, reference=now.detach().clone(), target_BL=torch.zeros(1, 3))
    terms.loss.backward()
    assert torch.isfinite(terms.loss) and torch.isfinite(now.grad).all()


@pytest.mark.parametrize("pairs", SOURCES)
def test_gradcheck(pairs):
    torch.manual_seed(0)
    batch = rich_batch(prompts=3)
    reference = -2 * torch.rand(3, 5, 3, dtype=torch.float64)
    point = (reference + 0.5 * torch.randn_like(reference)).requires_grad_()
    for objective in (dpo(pairs=pairs, nll_weight=0.3), ipo(pairs=pairs, nll_weight=0.3)):
        assert torch.autograd.gradcheck(
            lambda now, loss=objective: of(loss, batch, now, reference).loss, (point,)
        )


def test_metrics():
    found = of(dpo(nll_weight=0.1), target_BL=double([[-1.0, -1.0, -2.0]]))
    assert means(found) == pytest.approx(
        {
            "loss": found.loss.item(),
            "nll": 4.0,
            "margin": 1.5,
            "accuracy": 0.5,  # a margin of 0 is no success
            "chosen_gain": 1.5,
            "rejected_gain": 0.0,
            "pairs": 2.0,
            "paired_share": 1.0,
            "entropy": 1.0,
            "invalid_share": 0.0,
        }
    )
    invalid = replace(one_group(), candidate_items_BK=torch.tensor([[1, 2, -1, 4]]))
    assert means(of(dpo(), invalid))["invalid_share"] == 0.25


def test_what_they_need():
    for objective in (dpo(), ipo()):
        assert objective.needs_reference and objective.needs_groups and not objective.needs_values
