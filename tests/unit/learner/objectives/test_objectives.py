import math
from dataclasses import replace

import pytest
import torch

from sluice.catalog.decoding import PLAIN_POLICY
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.adagrpo import AdaGrpoLoss
from sluice.learner.objectives.grpo import GrpoLoss, clipped_surrogate
from sluice.learner.objectives.mixture import MixtureLoss
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.objectives.settings.objective import (
    AdaGrpoObjective,
    CorrectionSettings,
    GrpoObjective,
    GrpoSettings,
    MixtureObjective,
    NllObjective,
)
from sluice.learner.objectives.terms.correction import correction_weights
from sluice.learner.objectives.terms.group_term import k3_divergence
from sluice.learner.reduction import mean_of
from sluice.learner.scoring.shared_prefix import branch_log_probs
from sluice.learner.training.objective import build_objective
from tests.unit.learner.learner_cases import NAN, objective_input, one_group, random_batch, tiny_policy
from tests.unit.learner.objective_cases import RATIOS, A, grpo_loss, pair, scores_of


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "high", "expected"),
    [
        (1.5, 1.0, 0.2, 0.2, 1.2),
        (1.5, -1.0, 0.2, 0.2, -1.5),
        (0.5, 1.0, 0.2, 0.2, 0.5),
        (0.5, -1.0, 0.2, 0.2, -0.8),
        (1.5, 1.0, 0.1, 0.3, 1.3),
        (0.5, -1.0, 0.1, 0.3, -0.9),
        (1.1, 2.0, 0.2, 0.2, 2.2),
        (0.9, -2.0, 0.2, 0.2, -1.8),
    ],
)
def test_clipped_surrogate(ratio, advantage, low, high, expected):
    found = clipped_surrogate(torch.tensor([[[ratio]]]).log(), torch.tensor([[advantage]]), low, high)
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.5, 1.0, 0.0), (1.5, -1.0, -1.5), (0.5, 1.0, 0.5), (0.5, -1.0, 0.0)],
)
def test_a_clipped_token_has_no_gradient(ratio, advantage, gradient):
    log_ratio = torch.tensor([[[ratio]]]).log().requires_grad_()
    clipped_surrogate(log_ratio, torch.tensor([[advantage]]), 0.2, 0.2).sum().backward()
    assert log_ratio.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_k3():
    found = k3_divergence(torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-2.0, -1.0, -1.0]))
    assert found.tolist() == pytest.approx([math.exp(-1), math.e - 2, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("level", "low", "high", "expected"),
    [
        ("none", 0.0, 2.0, [1.0, 1.0]),
        ("token", 0.0, 2.0, [2.0, 0.5]),
        ("token", 0.8, 4.0, [3.0, 0.8]),
        ("sequence", 0.0, 2.0, [1.5]),
        ("sequence", 0.0, 1.2, [1.2]),
        ("sequence", 1.6, 2.0, [1.6]),
    ],
)
def test_truncated_correction(level, low, high, expected):
    start = torch.tensor([[[-1.0, -1.0]]], requires_grad=True)
    behaviour = start.detach() - torch.tensor([3.0, 0.5]).log()
    found = correction_weights(start, behaviour, CorrectionSettings(level=level, low=low, high=high))
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert not found.requires_grad


def test_grpo_against_the_behaviour_policy():
    # candidate 0: -A, -.8A, -1.5A; candidate 1: A, .5A, 1.2A; the sum is -.6A over K*L = 6 tokens
    batch, log_probs = pair()
    assert grpo_loss(GrpoSettings(kl_beta=0), batch, log_probs).item() == pytest.approx(0.1 * A, abs=1e-7)


def test_grpo_against_the_batch_start():
    batch, log_probs = pair(behaviour_log_probs_BKL=torch.full((1, 2, 3), -1.0, dtype=torch.float64))
    start = log_probs - RATIOS.log()
    settings = GrpoSettings(kl_beta=0, old_policy="batch_start")
    assert grpo_loss(settings, batch, log_probs, start).item() == pytest.approx(0.1 * A, abs=1e-7)
    # start/engine ratios are 1, 2, 2/3; truncated to 1.5: -A -1.2A -A; A + .75A + .8A
    settings = GrpoSettings(
        kl_beta=0, old_policy="batch_start", correction=CorrectionSettings(level="token", high=1.5)
    )
    assert grpo_loss(settings, batch, log_probs, start).item() == pytest.approx(0.65 / 6 * A, abs=1e-7)
    # of the sequence: 1 * 2 * 2/3 = 4/3
    settings = GrpoSettings(
        kl_beta=0, old_policy="batch_start", correction=CorrectionSettings(level="sequence")
    )
    assert grpo_loss(settings, batch, log_probs, start).item() == pytest.approx(0.4 / 3 * A, abs=1e-7)


def test_the_kl_term_is_added_per_token():
    batch, log_probs = pair()
    settings = GrpoSettings(kl_beta=0.1)
    loss = grpo_loss(settings, batch, log_probs, reference=log_probs + 1)  # d = 1
    assert loss.item() == pytest.approx(0.1 * A + 0.1 * (math.e - 2), abs=1e-7)
    loss = grpo_loss(settings, batch, log_probs, reference=log_probs - 1)  # d = -1
    assert loss.item() == pytest.approx(0.1 * A + 0.1 * math.exp(-1), abs=1e-7)


def test_injected_ground_truth_takes_the_learners_own_log_prob_as_behaviour():
    # candidate 1 is replaced: rewards 1 and 9, advantages -A' and A' with A' = 4 / (sqrt(32) + 1e-4); its
    # ratios are 1
    batch, log_probs = pair()
    expected = -(-3.3 + 3.0) / 6 * 4 / (math.sqrt(32) + 1e-4)
    settings = GrpoSettings(kl_beta=0, ground_truth="inject")
    log_probs = log_probs.clone()
    log_probs[:, 0] = -4.0
    leaf = log_probs.requires_grad_()
    loss = grpo_loss(settings, batch, leaf, start=leaf.detach())
    assert loss.item() == pytest.approx(expected, abs=1e-7)
    loss.backward()
    assert leaf.grad[0, 0].tolist() == pytest.approx([-4 / (math.sqrt(32) + 1e-4) / 6] * 3, abs=1e-7)
    assert leaf.grad[0, 2].tolist() == [0.0, 0.0, 0.0]


def test_ground_truth_that_could_not_be_drawn_is_not_injected():
    batch, log_probs = pair()
    log_probs[0, 0, 1] = -torch.inf
    settings = GrpoSettings(kl_beta=0.1, ground_truth="inject")
    loss = grpo_loss(settings, batch, log_probs, reference=log_probs)
    assert loss.item() == pytest.approx(0.1 * A, abs=1e-7)


def test_equal_rewards_leave_the_kl_alone():
    batch, log_probs = pair(candidate_scores_BK=torch.tensor([[0.1, 0.1]], dtype=torch.float64))
    log_probs.requires_grad_()
    loss = grpo_loss(GrpoSettings(kl_beta=0), batch, log_probs)
    loss.backward()
    assert loss.item() == 0 and log_probs.grad.abs().max() == 0


@pytest.mark.parametrize("old_policy", ["behaviour", "batch_start"])
def test_at_ratio_one_the_gradient_is_reinforce_with_a_group_baseline(old_policy):
    torch.manual_seed(0)
    batch = random_batch()
    log_probs = (-3 * torch.rand(4, 5, 3, dtype=torch.float64)).requires_grad_()
    batch = replace(batch, behaviour_log_probs_BKL=log_probs[:, 1:].detach())
    grpo_loss(GrpoSettings(kl_beta=0, old_policy=old_policy), batch, log_probs, log_probs.detach()).backward()
    rewards = batch.candidate_scores_BK.clone()
    rewards[:, -1] = rewards[:, :-1].amin(1) - 1  # the last candidate of each group is a hallucination
    advantage = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    again = log_probs.detach().clone().requires_grad_()
    (-(advantage[..., None] * again[:, 1:]).mean()).backward()
    torch.testing.assert_close(log_probs.grad, again.grad, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("settings", [
    GrpoSettings(kl_beta=0.05),
    GrpoSettings(kl_beta=0.05, ground_truth="inject"),
    GrpoSettings(old_policy="batch_start", correction=CorrectionSettings(level="token", low=0.5, high=1.5)),
    GrpoSettings(
        old_policy="batch_start", correction=CorrectionSettings(level="sequence"), ground_truth="override"
    ),
])  # fmt: skip
def test_gradcheck(settings):
    torch.manual_seed(0)
    batch = random_batch(prompts=2, candidates=3)
    start = -2 * torch.rand(2, 4, 3, dtype=torch.float64)
    reference = start + 0.3 * torch.randn_like(start)
    point = (start + 0.5 * torch.randn_like(start)).requires_grad_()
    objective = AdaGrpoLoss(0.7, settings, GateSettings(parts="difficulty", tau=0.5))

    def loss(log_probs):
        return objective(objective_input(batch, scores_of(log_probs), scores_of(start), reference)).loss

    assert torch.autograd.gradcheck(loss, (point,))


def test_nll_is_the_sum_over_tokens_and_the_mean_over_prompts():
    log_probs = torch.tensor([[[-1.0, -2.0, -3.0]], [[-0.5, -0.5, -0.5]]], requires_grad=True)
    terms = NllLoss()(
        objective_input(random_batch(prompts=2), scores_of(log_probs), scores_of(log_probs.detach()), None)
    )
    assert terms.loss.item() == pytest.approx((6.0 + 1.5) / 2)
    terms.loss.backward()
    assert log_probs.grad.unique().tolist() == [-0.5]
    assert terms.metrics["nll"].tolist() == [7.5, 2.0]


def test_nll_uses_the_free_policy_whatever_the_rollouts_were_drawn_from():
    batch, log_probs = pair()
    scores = scores_of(log_probs, target_BL=torch.tensor([[-2.0, -3.0, -4.0]], dtype=torch.float64))
    loss = MixtureLoss(2.0, GrpoSettings(kl_beta=0))(
        objective_input(batch, scores, scores_of(log_probs), None)
    ).loss
    assert loss.item() == pytest.approx(9.0 + 2.0 * 0.1 * A, abs=1e-7)


def model_gradients(objective, batch):
    model = tiny_policy().model
    inputs = MixtureLoss(1.0, GrpoSettings()).select_branches(batch)
    scores = branch_log_probs(
        model,
        batch.history_BT,
        batch.history_lengths_B,
        inputs.branches_BSL,
        inputs.allowed_BSLV,
        inputs.decoding,
    )
    terms = objective(objective_input(batch, scores, scores.detach(), scores.log_probs_BSL.detach() - 0.1))
    terms.loss.backward()
    return terms, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_bits(first, second):
    assert torch.equal(first[0].loss, second[0].loss)
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), name


@pytest.mark.parametrize("constrained", [False, True])
def test_a_closed_gate_is_pure_nll_to_the_bit(constrained):
    batch = random_batch(constrained=constrained, distractor_scores_BJ=torch.full((4, 2), 100.0))
    closed = AdaGrpoLoss(1.0, GrpoSettings(), GateSettings())
    found = model_gradients(closed, batch)
    assert found[0].metrics["gate_rate"].tolist() == [0.0, 4.0]
    assert_same_bits(found, model_gradients(NllLoss(), batch))


def test_an_open_gate_is_the_mixture_to_the_bit():
    batch = random_batch(
        target_scores_B=torch.full((4,), 100.0), distractor_scores_BJ=torch.full((4, 2), -100.0)
    )
    opened = AdaGrpoLoss(0.3, GrpoSettings(), GateSettings(parts="discriminability"))
    found = model_gradients(opened, batch)
    assert found[0].metrics["gate_rate"].tolist() == [4.0, 4.0]
    assert_same_bits(found, model_gradients(MixtureLoss(0.3, GrpoSettings()), batch))
    assert not torch.equal(found[0].loss, model_gradients(NllLoss(), batch)[0].loss)


def test_the_gate_lets_single_prompts_through():
    distractors = torch.tensor([[-100.0], [100.0], [-100.0], [100.0]])
    batch = random_batch(target_scores_B=torch.full((4,), 100.0), distractor_scores_BJ=distractors)
    gated = AdaGrpoLoss(1.0, GrpoSettings(), GateSettings(parts="discriminability"))
    log_probs = torch.full((4, 5, 3), -1.5, requires_grad=True)
    terms = gated(
        objective_input(batch, scores_of(log_probs), scores_of(log_probs.detach()), log_probs.detach() - 0.5)
    )
    terms.loss.backward()
    moved = log_probs.grad[:, 1:].abs().amax(dim=(1, 2)) > 0
    assert moved.tolist() == [True, False, True, False]
    assert (log_probs.grad[:, 0] < 0).all()


def test_a_refused_prompt_that_overflows_does_no_harm():
    batch = random_batch(distractor_scores_BJ=torch.full((4, 2), 100.0))
    batch.behaviour_log_probs_BKL[0] = -1e4  # the ratios are infinite
    log_probs = torch.full((4, 5, 3), -1.5)
    loss = AdaGrpoLoss(1.0, GrpoSettings(kl_beta=0), GateSettings())(
        objective_input(batch, scores_of(log_probs), scores_of(log_probs), None)
    ).loss
    assert loss.item() == pytest.approx(4.5)


def test_the_gate_uses_the_batch_start_and_the_rollouts_distribution():
    # GT at the start: -2.5 in all, rank 3 of 4; now, and under the free policy, it is the likeliest
    batch = one_group()
    start = torch.full((1, 5, 3), -2.5 / 3)
    terms = AdaGrpoLoss(1.0, GrpoSettings(kl_beta=0), GateSettings())(
        objective_input(batch, scores_of(start * 0.01), scores_of(start), None)
    )
    assert terms.metrics["policy_rank"].tolist() == [3.0, 1.0]


def test_metrics_of_one_group():
    batch, log_probs = pair(
        candidate_items_BK=torch.tensor([[1, -1]]),
        candidate_scores_BK=torch.tensor([[1.0, NAN]], dtype=torch.float64),
    )
    settings = AdaGrpoLoss(2.0, GrpoSettings(kl_beta=0.1), GateSettings(tau=0.5, rho=0.5))
    terms = settings(objective_input(batch, scores_of(log_probs), scores_of(log_probs - 0.25), log_probs + 1))
    means = {name: (value[0] / value[1]).item() for name, value in terms.metrics.items()}
    # rewards are 1 and 0: advantages A'' and -A'' with A'' = .5 / (sqrt(.5) + 1e-4)
    grpo = -(2.7 - 3.3) / 6 * 0.5 / (math.sqrt(0.5) + 1e-4) + 0.1 * (math.e - 2)
    assert means["gate_rate"] == means["difficulty"] == means["discriminability"] == 1
    assert means["nll"] == pytest.approx(3.0)
    assert means["grpo"] == pytest.approx(grpo)
    assert means["loss"] == pytest.approx(3.0 + 2 * grpo) == terms.loss.item()
    assert means["kl"] == pytest.approx(math.e - 2)
    assert means["ratio_mean"] == pytest.approx(1.0)
    assert means["clip_share"] == pytest.approx(2 / 6)  # A > 0 at 1.5, A < 0 at .5
    assert means["invalid_share"] == 0.5 and means["hit_share"] == 0
    assert means["entropy"] == 1
    assert means["reward_admitted"] == pytest.approx(0.5)
    assert terms.metrics["reward_refused"].tolist() == [0.0, 0.0]
    mismatch = sum(abs(-0.25 + math.log(ratio)) for ratio in (1.0, 0.5, 1.5)) / 3
    assert means["mismatch"] == pytest.approx(mismatch)
    assert (means["policy_rank"], means["ranker_rank"]) == (3, 1)


def test_clip_share_counts_the_tokens_whose_gradient_is_cut():
    # A < 0 is cut below 0.8, twice; A > 0 above 1.2, once
    ratios = torch.tensor([[[0.5, 0.5, 1.5], [0.5, 1.0, 1.5]]], dtype=torch.float64)
    batch, log_probs = pair(behaviour_log_probs_BKL=-1 - ratios.log())
    terms = GrpoLoss(GrpoSettings(kl_beta=0))(
        objective_input(batch, scores_of(log_probs), scores_of(log_probs), None)
    )
    assert terms.metrics["clip_share"].tolist() == [3.0, 6.0]
    assert terms.metrics["ratio_mean"].tolist() == pytest.approx([5.5, 6.0])


def test_hit_share_counts_prompts():
    items = torch.tensor([[5000, 5000, 1, 2], [1, 2, 3, 4], [1, 5000, 3, 4], [1, 2, 3, 4]])
    batch = random_batch(candidate_items_BK=items, candidate_scores_BK=torch.rand(4, 4))
    log_probs = torch.full((4, 5, 3), -1.0)
    terms = GrpoLoss(GrpoSettings(kl_beta=0))(
        objective_input(batch, scores_of(log_probs), scores_of(log_probs), None)
    )
    assert terms.metrics["hit_share"].tolist() == [2.0, 4.0]
    assert terms.metrics["invalid_share"].tolist() == [0.0, 16.0]
    assert terms.metrics["gate_rate"].tolist() == [4.0, 4.0]


def test_mean_of():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert mean_of(values).tolist() == [10.0, 4.0]
    assert mean_of(values, values > 2).tolist() == [7.0, 2.0]
    assert mean_of(torch.tensor([NAN, 1.0]), torch.tensor([False, True])).tolist() == [1.0, 1.0]
    assert not mean_of(values).requires_grad


def test_inputs():
    batch = random_batch(constrained=True, temperature=0.5)
    nll = NllLoss().select_branches(batch)
    assert nll.branches_BSL.tolist() == batch.target_BL[:, None].tolist()
    assert nll.allowed_BSLV is None and nll.decoding == PLAIN_POLICY
    groups = GrpoLoss(GrpoSettings()).select_branches(batch)
    assert torch.equal(groups.branches_BSL[:, 0], batch.target_BL)
    assert torch.equal(groups.branches_BSL[:, 1:], batch.candidates_BKL)
    assert (
        groups.allowed_BSLV is batch.allowed_BSLV
        and groups.decoding is batch.decoding
        and groups.decoding.temperature == 0.5
    )


def test_build_objective():
    assert isinstance(build_objective(NllObjective()), NllLoss)
    assert not build_objective(NllObjective()).needs_groups
    assert isinstance(build_objective(GrpoObjective()), GrpoLoss)
    mixture = build_objective(MixtureObjective(weight=0.5, grpo=GrpoSettings(kl_beta=0)))
    assert isinstance(mixture, MixtureLoss) and mixture.weight == 0.5 and not mixture.needs_reference
    gated = build_objective(AdaGrpoObjective(weight=2.0, gate=GateSettings(tau=0.1)))
    assert isinstance(gated, AdaGrpoLoss) and gated.gate_settings.tau == 0.1 and gated.weight == 2.0
    assert gated.needs_reference and gated.needs_groups
    with pytest.raises(TypeError, match="str"):
        build_objective("adagrpo")
