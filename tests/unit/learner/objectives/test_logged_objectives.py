import math
from dataclasses import replace

import pytest
import torch

from sluice.catalog.decoding import PLAIN_POLICY
from sluice.catalog.errors import DataError, RankerError
from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.objectives.a_sft import AdvantageSftLoss, advantage_weights, candidate_baseline
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.objectives.reward_weighted_bc import RewardWeightedBcLoss
from sluice.learner.objectives.settings.logged import (
    AdvantageSftObjective,
    CandidateBaseline,
    ValueHeadBaseline,
)
from sluice.learner.objectives.terms.logged import mean_over, weighted_mean_of
from tests.unit.learner.learner_cases import NAN, objective_input, random_batch
from tests.unit.learner.preference_cases import assert_nothing_to_learn, double, means, rich_batch, scores_of

NLL = double([[[-1.0, -1.0, -1.0]], [[-2.0, -2.0, -2.0]], [[-0.5, -0.5, -0.5]]])  # 3, 6, 1.5 nats
VALUES = torch.tensor([[2.0, 4.0, 3.0, 99.0], [1.0, 1.0, 4.0, 99.0], [1.0, 1.0, 1.0, 99.0]])  # means 3, 2, 1
HEAD = ValueHeadBaseline(weight=0.5)


def logged(rewards, **changes):
    """Three prompts whose last candidate is no item."""
    return random_batch(
        prompts=3, logged_rewards_B=torch.tensor(rewards), candidate_values_BK=VALUES, **changes
    )


def of(objective, batch, now=NLL, values=None, start_values=None):
    start = scores_of(now.detach(), now.detach() if start_values is None else start_values)
    return objective(objective_input(batch, scores_of(now, values), start, None))


def a_sft(**changes):
    return AdvantageSftLoss(AdvantageSftObjective(**changes))


def at_the_prompt(*values):
    """Values [3, 1, 3] with these before the first token and others later."""
    return torch.stack([double(values), double(values) + 7, double(values) - 7], dim=-1)[:, None]


def test_reward_weighted_bc():
    # 5 * 3 + 1 * 6 + 0 * 1.5 over 6
    batch = logged([5.0, 1.0, NAN])
    terms = of(RewardWeightedBcLoss(0.0), batch)
    assert terms.loss.item() == pytest.approx(21 / 6, abs=1e-12)
    assert RewardWeightedBcLoss(0.0).normaliser(batch).item() == 6
    # a row without a reward weighs 2: 5 * 3 + 1 * 6 + 2 * 1.5 over 8
    assert of(RewardWeightedBcLoss(2.0), batch).loss.item() == pytest.approx(24 / 8, abs=1e-12)


def test_a_negative_reward_weighs_nothing_and_is_counted():
    terms = of(RewardWeightedBcLoss(0.0), logged([5.0, -3.0, NAN]))
    assert terms.loss.item() == pytest.approx(3.0, abs=1e-12)
    assert terms.metrics["negative_share"].tolist() == [1, 3]
    assert terms.metrics["rewarded_share"].tolist() == [2, 3]
    assert of(RewardWeightedBcLoss(0.0), logged([5.0, 0.0, -1.0])).metrics["negative_share"].tolist() == [
        1,
        3,
    ]


def test_the_unit_of_the_reward_does_not_matter():
    losses = [
        of(RewardWeightedBcLoss(0.0), logged([5.0 * unit, unit, 0.0])).loss.item() for unit in (1.0, 100.0)
    ]
    assert losses == pytest.approx([3.5, 3.5], abs=1e-12)


def test_reward_weighted_bc_with_equal_rewards_is_nll():
    batch = logged([4.0, 4.0, 4.0])
    assert of(RewardWeightedBcLoss(0.0), batch).loss.item() == pytest.approx(of(NllLoss(), batch).loss.item())


def test_metrics_of_reward_weighted_bc():
    found = of(RewardWeightedBcLoss(0.5), logged([5.0, 1.0, NAN]))
    assert means(found) == pytest.approx(
        {
            "loss": found.loss.item(),
            "nll": 3.5,
            "weight": 6.5 / 3,
            "rewarded_share": 2 / 3,
            "negative_share": 0,
            "entropy": 1,
        }
    )
    assert found.metrics["loss"][1] == 6.5


def test_advantage_weights():
    found = advantage_weights(double([2.0, -1.0, NAN, 100.0, 0.0]), 2.0, 3.0, 0.25)
    assert found.tolist() == pytest.approx([math.exp(1), math.exp(-0.5), 0.25, 3.0, 1.0], abs=1e-12)
    assert not advantage_weights(double([1.0]).requires_grad_(), 1.0, 3.0, 0.0).requires_grad


def test_the_baseline_is_the_mean_over_valid_candidates():
    batch = logged([1.0, 1.0, 1.0])
    assert candidate_baseline(batch).tolist() == [3.0, 2.0, 1.0]
    unfound = replace(batch, candidate_items_BK=torch.tensor([[1, 2, 3, 4], [-1, 2, -1, -1], [-1] * 4]))
    assert candidate_baseline(unfound)[:2].tolist() == [27.0, 1.0] and candidate_baseline(unfound)[2].isnan()


def test_a_sft():
    # advantages 2 and -1
    batch, objective = logged([5.0, 1.0, NAN]), a_sft(beta=2.0)
    first, second = math.exp(1), math.exp(-0.5)
    assert of(objective, batch).loss.item() == pytest.approx(
        (3 * first + 6 * second) / (first + second), abs=1e-12
    )
    assert objective.normaliser(batch).item() == pytest.approx(first + second)
    third = of(a_sft(beta=2.0, missing_weight=0.25), batch).loss.item()
    assert third == pytest.approx((3 * first + 6 * second + 0.25 * 1.5) / (first + second + 0.25), abs=1e-12)
    clipped = of(a_sft(beta=2.0, max_weight=2.0), batch)
    assert clipped.loss.item() == pytest.approx((3 * 2 + 6 * second) / (2 + second), abs=1e-12)
    assert clipped.metrics["weight_clipped"].tolist() == [1, 2]


def test_a_sft_with_a_value_head():
    # the same advantages from the head's start values; errors now are -1 and -1
    batch, objective = logged([5.0, 1.0, NAN]), a_sft(beta=2.0, baseline=HEAD, missing_weight=0.25)
    now, start = at_the_prompt(4.0, 0.0, 7.0), at_the_prompt(3.0, 2.0, 1.0)
    first, second = math.exp(1), math.exp(-0.5)
    expected = (3 * first + 6 * second + 0.25 * 1.5 + 0.5 * (1 + 1)) / 2.25
    assert of(objective, batch, values=now, start_values=start).loss.item() == pytest.approx(
        expected, abs=1e-12
    )
    assert objective.normaliser(batch).item() == 2.25


def test_only_the_value_loss_reaches_the_value_head():
    batch = logged([5.0, 1.0, NAN])
    now = at_the_prompt(4.0, -1.0, 7.0).requires_grad_()
    of(a_sft(baseline=HEAD), batch, values=now, start_values=now.detach()).loss.backward()
    # weight * 2 (V - r) over the two rewarded rows
    assert now.grad[:, 0].tolist() == [[-0.5, 0, 0], [-1.0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_with_beta_to_infinity_a_sft_is_nll(seed):
    torch.manual_seed(seed)
    batch = rich_batch(seed=seed, logged_rewards_B=torch.rand(6), candidate_values_BK=torch.rand(6, 4))
    now = (-2 * torch.rand(6, 1, 3, dtype=torch.float64)).requires_grad_()
    plain = of(NllLoss(), batch, now).loss
    weighted = of(a_sft(beta=1e12), batch, now).loss
    assert weighted.item() == pytest.approx(plain.item(), abs=1e-12)
    assert of(a_sft(beta=1.0), batch, now).loss.item() != pytest.approx(plain.item(), abs=1e-3)
    (gradient,) = torch.autograd.grad(weighted, now)
    torch.testing.assert_close(gradient, torch.full_like(now, -1 / 6), atol=1e-12, rtol=0)
    head = of(a_sft(beta=1e12, baseline=HEAD), batch, now, torch.zeros_like(now), torch.zeros_like(now))
    assert head.loss.item() - 0.5 * head.metrics["value_error"][0] / 6 == pytest.approx(
        plain.item(), abs=1e-11
    )


def test_a_smaller_beta_trusts_the_better_rows_more():
    batch = logged([5.0, 1.0, 1.0])
    losses = [of(a_sft(beta=beta, max_weight=1e6), batch).loss.item() for beta in (0.2, 2.0, 1e9)]
    assert losses[0] == pytest.approx(3.0, abs=1e-3) and losses[2] == pytest.approx(3.5, abs=1e-6)


def test_metrics_of_a_sft():
    objective = a_sft(beta=2.0, missing_weight=0.25, baseline=HEAD)
    terms = of(
        objective, logged([5.0, 1.0, NAN]), NLL, at_the_prompt(4.0, 3.0, 7.0), at_the_prompt(3.0, 2.0, 1.0)
    )
    weights = [math.exp(1), math.exp(-0.5), 0.25]
    expected = {
        "loss": terms.loss.item(),
        "nll": 3.5,
        "nll_weighted": (3 * weights[0] + 6 * weights[1] + 1.5 * weights[2]) / sum(weights),
        "weight": sum(weights) / 3,
        "weight_clipped": 0,
        "advantage": 0.5,
        "rewarded_share": 2 / 3,
        "value_error": (1 + 4) / 2,
        "entropy": 1,
    }
    assert means(terms) == pytest.approx(expected)


@pytest.mark.parametrize(
    "objective", [RewardWeightedBcLoss(0.5), a_sft(missing_weight=0.5), a_sft(baseline=HEAD)]
)
def test_gradcheck(objective):
    torch.manual_seed(0)
    batch = rich_batch(prompts=3)
    start = torch.randn(3, 1, 3, dtype=torch.float64)
    now = (-2 * torch.rand(3, 1, 3, dtype=torch.float64)).requires_grad_()
    values = (start + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda now, values: of(objective, batch, now, values, start).loss + 0 * values.sum(), (now, values)
    )


@pytest.mark.parametrize("objective", [RewardWeightedBcLoss(0.0), a_sft(), a_sft(baseline=HEAD)])
def test_no_reward_no_loss(objective):
    now = NLL.clone().requires_grad_()
    values = at_the_prompt(1.0, 2.0, 3.0).requires_grad_() if objective.needs_values else None
    scores = scores_of(now, values)
    assert_nothing_to_learn(objective, logged([NAN, NAN, NAN]), scores, scores.detach())


def test_no_valid_candidate_no_loss():
    scores = scores_of(NLL.clone().requires_grad_())
    nothing = torch.full((3, 4), -1)
    assert_nothing_to_learn(
        a_sft(), logged([1.0, 2.0, 3.0], candidate_items_BK=nothing), scores, scores.detach()
    )


def test_what_is_missing_is_said():
    bare = random_batch(prompts=3)
    for objective in (RewardWeightedBcLoss(1.0), a_sft(), a_sft(baseline=HEAD)):
        with pytest.raises(DataError, match="rating or dwell_seconds"):
            objective.normaliser(bare)
    with pytest.raises(RankerError, match=r"baseline\.type to value_head"):
        a_sft().normaliser(replace(bare, logged_rewards_B=torch.ones(3)))


def test_inputs_and_needs():
    batch = random_batch(constrained=True, temperature=0.5)
    bare = LoggedBatch(
        history_BT=batch.history_BT, history_lengths_B=batch.history_lengths_B, target_BL=batch.target_BL
    )
    for objective in (RewardWeightedBcLoss(1.0), a_sft(), a_sft(baseline=HEAD)):
        inputs = objective.select_branches(bare)
        assert torch.equal(inputs.branches_BSL, batch.target_BL[:, None])
        assert inputs.allowed_BSLV is None and inputs.decoding == PLAIN_POLICY
        assert not objective.needs_reference
    assert not RewardWeightedBcLoss(1.0).needs_groups and not RewardWeightedBcLoss(1.0).needs_values
    assert a_sft().needs_groups and not a_sft(baseline=CandidateBaseline()).needs_values
    assert a_sft(baseline=HEAD).needs_values and not a_sft(baseline=HEAD).needs_groups


def test_means_with_weights():
    values = double([1.0, 3.0]).requires_grad_()
    assert mean_over(values, double(4.0)).item() == 1.0
    assert mean_over(0 * values, double(0.0)).item() == 0 and mean_over(0 * values, double(0.0)).requires_grad
    assert mean_over(values.float(), double(8.0)).dtype == torch.float32
    found = weighted_mean_of(values, double([0.5, 2.0]))
    assert found.tolist() == [6.5, 2.5] and not found.requires_grad
