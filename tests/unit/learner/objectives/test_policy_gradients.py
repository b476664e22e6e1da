"""The options of grpo, and the objectives grpo_sr, ecpo, gbpo and rere, by hand and against theory."""

import math

import pytest
import torch

from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives import ecpo, gbpo, grpo_sr
from sluice.learner.objectives.adagrpo import AdaGrpoLoss
from sluice.learner.objectives.ecpo import EcpoLoss, early_clipped_old
from sluice.learner.objectives.gbpo import GbpoLoss, bounded_old
from sluice.learner.objectives.grpo import GrpoLoss, clipped_surrogate
from sluice.learner.objectives.grpo_sr import GrpoSrLoss
from sluice.learner.objectives.rere import RereLoss
from sluice.learner.objectives.settings.objective import (
    CorrectionSettings,
    EcpoObjective,
    EcpoSettings,
    GbpoObjective,
    GbpoSettings,
    GrpoSettings,
    GrpoSrObjective,
    GrpoSrSettings,
    RereObjective,
    RereSettings,
)
from sluice.learner.objectives.terms.advantages import group_advantages
from sluice.learner.objectives.terms.correction import correction_weights, inside_bounds
from sluice.learner.rewards.settings import RankerReward
from sluice.learner.training.objective import build_objective
from tests.unit.learner.learner_cases import objective_input, random_batch
from tests.unit.learner.objective_cases import RATIOS, A, grpo_loss, pair, scores_of

RAW = (RankerReward(),)


def leaf_of(log_probs):
    return log_probs.detach().clone().requires_grad_()


def loss_and_gradient(objective, batch, log_probs, start=None, reference=None):
    leaf = leaf_of(log_probs)
    start = log_probs if start is None else start
    terms = objective(objective_input(batch, scores_of(leaf), scores_of(start.detach()), reference))
    terms.loss.backward()
    return terms, leaf.grad


# Advantages: rewards are 1 and 3; the sum over tokens is (2.7 - 3.3) times the advantage, over 6.


@pytest.mark.parametrize(("kind", "advantage"), [("grpo", A), ("dr_grpo", 1.0), ("rloo", 2.0)])
def test_advantage_kinds(kind, advantage):
    batch, log_probs = pair()
    loss = grpo_loss(GrpoSettings(kl_beta=0, advantage=kind), batch, log_probs)
    assert loss.item() == pytest.approx(0.1 * advantage, abs=1e-7)


def test_rloo_is_k_over_k_minus_1_times_the_mean_baseline():
    rewards = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = (rewards.sum(-1, keepdim=True) - rewards) / 6
    rloo = group_advantages(rewards, "rloo")
    torch.testing.assert_close(rloo, rewards - others, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(rloo, 7 / 6 * group_advantages(rewards, "dr_grpo"), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["dr_grpo", "rloo"])
def test_equal_rewards_give_exact_zeros_without_a_deviation_too(kind):
    assert group_advantages(torch.full((2, 7), 0.1), kind).tolist() == [[0.0] * 7] * 2


def test_dr_grpo_divides_by_the_constant_k_times_l():
    batch = random_batch()
    log_probs = -3 * torch.rand(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    settings = GrpoSettings(kl_beta=0, advantage="dr_grpo", old_policy="batch_start")
    _, gradient = loss_and_gradient(GrpoLoss(settings), batch, log_probs)
    rewards = batch.candidate_scores_BK.clone()
    rewards[:, -1] = rewards[:, :-1].amin(1) - 1
    expected = -(rewards - rewards.mean(1, keepdim=True)) / (4 * 3) / 4  # K L_max, prompts
    torch.testing.assert_close(
        gradient[:, 1:], expected.double()[..., None].expand(4, 4, 3), atol=1e-8, rtol=1e-6
    )


# Ratio levels: the ratio of a candidate is 1 * .5 * 1.5 = .75.


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"ratio": "sequence"}, (0.8 - 0.75) / 2),  # A < 0 is clipped at .8
        ({"ratio": "sequence", "clip_low": 0.3}, 0.0),
        ({"ratio": "gspo"}, (0.9997 - 0.9085603) / 2),  # the cube root of .75, against 1 - 3e-4
        ({"ratio": "gspo", "clip_low": 0.05}, (0.95 - 0.9085603) / 2),
        ({"ratio": "gspo", "clip_low": 0.2}, 0.0),
        ({"clip_high": 0.28}, (3.3 - 2.78) / 6),  # clip-higher: 1 + .5 + 1.28
        ({"clip_low": 0.4}, (3.1 - 2.7) / 6),  # 1 + .6 + 1.5
    ],
)
def test_ratio_levels_and_clip_bounds(settings, loss):
    batch, log_probs = pair()
    assert grpo_loss(GrpoSettings(kl_beta=0, **settings), batch, log_probs).item() == pytest.approx(
        loss * A, abs=1e-7
    )


def test_gspo_clips_above_at_four_ten_thousandths():
    batch, log_probs = pair(behaviour_log_probs_BKL=torch.full((1, 2, 3), -1.1, dtype=torch.float64))
    terms, _ = loss_and_gradient(GrpoLoss(GrpoSettings(kl_beta=0, ratio="gspo")), batch, log_probs)
    assert terms.loss.item() == pytest.approx((math.exp(0.1) - 1.0004) / 2 * A, abs=1e-7)
    assert terms.metrics["clip_share"].tolist() == [1.0, 2.0]
    assert terms.metrics["ratio_mean"].tolist() == pytest.approx([2 * math.exp(0.1), 2.0])


@pytest.mark.parametrize(("ratio", "factor"), [("gspo", 1.0), ("sequence", 3.0)])
def test_at_ratio_one_the_levels_have_one_direction(ratio, factor):
    batch = random_batch()
    log_probs = -3 * torch.rand(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = [
        loss_and_gradient(
            GrpoLoss(GrpoSettings(kl_beta=0, old_policy="batch_start", ratio=level)), batch, log_probs
        )[1]
        for level in ("token", ratio)
    ]
    torch.testing.assert_close(gradients[1], factor * gradients[0], atol=1e-12, rtol=1e-10)


def test_the_kl_of_a_sequence_ratio_is_per_token():
    batch, log_probs = pair()
    settings = GrpoSettings(kl_beta=0.1, ratio="sequence")
    loss = grpo_loss(settings, batch, log_probs, reference=log_probs + 1)
    assert loss.item() == pytest.approx(0.025 * A + 0.1 * (math.e - 2), abs=1e-7)


# Masked importance sampling: of start to engine, the ratios are 1, 2 and 2/3; of a candidate 4/3.


@pytest.mark.parametrize(
    ("level", "low", "high", "expected"),
    [
        ("token", 0.0, 2.0, [0.0, 0.5]),
        ("token", 0.8, 4.0, [3.0, 0.0]),
        ("token", 0.25, 4.0, [3.0, 0.5]),
        ("sequence", 0.0, 2.0, [1.5]),
        ("sequence", 0.0, 1.2, [0.0]),
        ("sequence", 1.6, 2.0, [0.0]),
    ],
)
def test_masked_correction(level, low, high, expected):
    start = torch.tensor([[[-1.0, -1.0]]], requires_grad=True)
    behaviour = start.detach() - torch.tensor([3.0, 0.5]).log()
    settings = CorrectionSettings(level=level, low=low, high=high, outside="mask")
    found = correction_weights(start, behaviour, settings)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6) and not found.requires_grad
    assert inside_bounds(start, behaviour, settings).flatten().tolist() == [value > 0 for value in expected]


def test_masked_tokens_leave_the_loss():
    batch, log_probs = pair(behaviour_log_probs_BKL=torch.full((1, 2, 3), -1.0, dtype=torch.float64))
    start = log_probs - RATIOS.log()
    masked = {"old_policy": "batch_start", "kl_beta": 0}
    settings = GrpoSettings(correction=CorrectionSettings(level="token", high=1.5, outside="mask"), **masked)
    terms, _ = loss_and_gradient(GrpoLoss(settings), batch, log_probs, start)
    # -A, 0, -1.5 * 2/3 A; A, 0, 1.2 * 2/3 A
    assert terms.loss.item() == pytest.approx(0.2 / 6 * A, abs=1e-7)
    assert terms.metrics["correction_inside"].tolist() == [4.0, 6.0]
    settings = GrpoSettings(
        correction=CorrectionSettings(level="sequence", high=1.3, outside="mask"), **masked
    )
    terms, gradient = loss_and_gradient(GrpoLoss(settings), batch, log_probs, start)
    assert terms.loss.item() == 0 and gradient.abs().max() == 0
    assert terms.metrics["correction_inside"].tolist() == [0.0, 2.0]


def test_an_injected_ground_truth_is_not_among_the_tokens_that_a_correction_reports():
    batch, log_probs = pair(behaviour_log_probs_BKL=torch.full((1, 2, 3), -1.0, dtype=torch.float64))
    correction = CorrectionSettings(level="token", high=1.5, outside="mask")
    settings = GrpoSettings(old_policy="batch_start", kl_beta=0, ground_truth="inject", correction=correction)
    terms, _ = loss_and_gradient(GrpoLoss(settings), batch, log_probs, log_probs - RATIOS.log())
    assert terms.metrics["correction_inside"].tolist() == [2.0, 3.0]  # of candidate 0: 1 and 2/3, not 2


# DAPO drops groups whose rewards are all equal.


def two_groups(equal=(0,)):
    scores = torch.tensor([[1.0, 3.0], [1.0, 3.0], [2.0, 5.0]], dtype=torch.float64)
    for row in equal:
        scores[row] = 0.1
    items = torch.tensor([[1, 2]]).expand(3, 2)
    batch = random_batch(prompts=3, candidates=2, candidate_items_BK=items)
    return type(batch)(**{**vars(batch), "candidate_scores_BK": scores})


DAPO = GrpoSettings(kl_beta=0, clip_high=0.28, drop_equal_groups=True)


def test_dapo_takes_the_mean_over_the_groups_that_differ():
    log_probs = -3 * torch.rand(3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch, objective = two_groups(), GrpoLoss(DAPO)
    terms, gradient = loss_and_gradient(objective, batch, log_probs)
    plain, plain_gradient = loss_and_gradient(
        GrpoLoss(GrpoSettings(kl_beta=0, clip_high=0.28)), batch, log_probs
    )
    assert (
        objective.normaliser(batch).item() == 2.0 and GrpoLoss(GrpoSettings()).normaliser(batch).item() == 3.0
    )
    assert terms.loss.item() == pytest.approx(plain.loss.item() * 3 / 2) != 0
    torch.testing.assert_close(gradient, plain_gradient * 3 / 2)
    assert terms.metrics["kept"].tolist() == [2.0, 3.0]
    assert terms.metrics["loss"].tolist() == pytest.approx([2 * terms.loss.item(), 2.0])


def test_a_kl_on_a_dropped_group_is_dropped_with_it():
    log_probs = torch.full((3, 3, 3), -1.0, dtype=torch.float64)
    batch, settings = two_groups(), DAPO.model_copy(update={"kl_beta": 1.0})
    _, gradient = loss_and_gradient(GrpoLoss(settings), batch, log_probs, reference=log_probs - 1)
    assert gradient[0].abs().max() == 0 and gradient[1:, 1:].abs().min() > 0


def test_dapo_without_any_group_is_zero():
    batch, objective = two_groups(equal=(0, 1, 2)), GrpoLoss(DAPO)
    terms, gradient = loss_and_gradient(objective, batch, torch.full((3, 3, 3), -1.0, dtype=torch.float64))
    assert objective.normaliser(batch).item() == 0 and terms.loss.item() == 0 and gradient.abs().max() == 0


# GRPO-SR


def test_grpo_sr_is_reinforce_and_the_likelihood_of_the_ground_truth():
    batch, log_probs = pair()
    objective = GrpoSrLoss(0.5, GrpoSrSettings(rewards=RAW, ground_truth="none"))
    terms, gradient = loss_and_gradient(objective, batch, log_probs)
    assert terms.loss.item() == pytest.approx(0.5 * 3.0)  # the advantages sum to 0
    assert gradient[0, 0].tolist() == [-0.5] * 3
    assert gradient[0, 1].tolist() == pytest.approx([A / 6] * 3) and gradient[0, 2].tolist() == pytest.approx(
        [-A / 6] * 3
    )
    assert terms.metrics["loss"].tolist() == pytest.approx([1.5, 1.0])
    assert terms.metrics["grpo"].tolist() == pytest.approx([0.0, 1.0])
    assert not objective.needs_reference


def test_the_gradient_of_grpo_sr_is_that_of_grpo_at_ratio_one():
    batch = random_batch()
    log_probs = -3 * torch.rand(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, gradient = loss_and_gradient(
        GrpoSrLoss(0.0, GrpoSrSettings(rewards=RAW, ground_truth="none")), batch, log_probs
    )
    _, expected = loss_and_gradient(
        GrpoLoss(GrpoSettings(kl_beta=0, old_policy="batch_start")), batch, log_probs
    )
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=1e-12)


def test_the_default_reward_of_grpo_sr_is_preference_times_relevance_with_positives_at_the_top():
    batch, _ = pair(
        candidate_items_BK=torch.tensor([[1, 2]])
    )  # (3, 7, 11) starts like GT, (4, 7, 10) does not
    term = GrpoSrLoss(1.0, GrpoSrSettings()).term(
        objective_input(batch, scores_of(torch.zeros(1, 3, 3)), scores_of(torch.zeros(1, 3, 3)))
    )
    assert term.rewards.rewards_BK[0].tolist() == pytest.approx([0.7310586, 0.0])
    batch, _ = pair(candidate_items_BK=torch.tensor([[1, 0]]))
    term = GrpoSrLoss(1.0, GrpoSrSettings()).term(
        objective_input(batch, scores_of(torch.zeros(1, 3, 3)), scores_of(torch.zeros(1, 3, 3)))
    )
    assert term.rewards.rewards_BK[0].tolist() == pytest.approx([0.7310586, 0.7310586])
    assert term.metrics["reward/relevance"].tolist() == [1.0, 2.0]


# ECPO: epsilon .2, delta .1


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (5.0, -1.0, -1.3, -1.3),  # the early clip
        (1.25, -1.0, -1.25, -1.25),
        (0.5, -1.0, -0.8, 0.0),
        (5.0, 1.0, 1.2, 0.0),
        (1.1, 1.0, 1.1, 1.1),
        (0.5, 1.0, 0.5, 0.5),
    ],
)
def test_ecpo_of_one_token(ratio, advantage, value, gradient):
    log_prob = torch.tensor([[[-1.0]]], dtype=torch.float64, requires_grad=True)
    old = log_prob.detach() - math.log(ratio)
    raised = early_clipped_old(log_prob, old, 1.3)
    assert not raised.requires_grad
    found = clipped_surrogate(log_prob - raised, torch.tensor([[advantage]], dtype=torch.float64), 0.2, 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(value) and log_prob.grad.item() == pytest.approx(gradient)


def test_ecpo_bounds_the_ratio_of_a_negative_advantage():
    batch, log_probs = pair()
    terms, gradient = loss_and_gradient(EcpoLoss(EcpoSettings()), batch, log_probs)
    # -A, -.8A, -1.3A (GRPO: -1.5A); A, .5A, 1.2A
    assert terms.loss.item() == pytest.approx(0.4 / 6 * A, abs=1e-7)
    assert gradient[0, 1].tolist() == pytest.approx([A / 6, 0.0, 1.3 * A / 6], abs=1e-7)
    assert terms.metrics["early_clip_share"].tolist() == [1.0, 6.0]
    assert terms.metrics["clip_share"].tolist() == [2.0, 6.0]
    wide = EcpoSettings(early_clip_margin=0.4)
    assert loss_and_gradient(EcpoLoss(wide), batch, log_probs)[0].loss.item() == pytest.approx(
        0.52 / 6 * A + 0.08 / 6 * A
    )
    settings = EcpoSettings(clip_high=0.1)  # 1 + .1 + .1; A > 0 is clipped at 1.1
    found = loss_and_gradient(EcpoLoss(settings), batch, log_probs)[0].loss.item()
    assert found == pytest.approx((3.0 - 2.6) / 6 * A, abs=1e-7)


def test_ecpo_clips_below_where_advantages_are_negative_and_above_where_they_are_positive():
    ratios = torch.tensor([[[0.5, 0.5, 1.0], [1.0, 1.0, 1.5]]], dtype=torch.float64)
    batch, log_probs = pair(behaviour_log_probs_BKL=-1 - ratios.log())
    found, _ = loss_and_gradient(EcpoLoss(EcpoSettings(clip_low=0.4)), batch, log_probs)
    assert found.loss.item() == pytest.approx((0.6 + 0.6 + 1 - 1 - 1 - 1.2) / 6 * A, abs=1e-7)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ecpo_equals_grpo_where_advantages_are_positive(sign):
    generator = torch.Generator().manual_seed(0)
    log_probs = (-3 * torch.rand(6, 4, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    old = -3 * torch.rand(6, 4, 3, dtype=torch.float64, generator=generator)
    advantages = sign * torch.rand(6, 4, dtype=torch.float64, generator=generator)
    raised = early_clipped_old(log_probs, old, 1.3)
    plain, early = (clipped_surrogate(log_probs - policy, advantages, 0.2, 0.2) for policy in (old, raised))
    gradients = [torch.autograd.grad(surrogate.sum(), log_probs)[0] for surrogate in (plain, early)]
    assert (raised > old).any()
    assert torch.allclose(plain, early) is (sign > 0) and torch.allclose(*gradients) is (sign > 0)


# GBPO: the learner's p is 1/e = .36788, 1 - p = .63212; the old ones are p / RATIOS = .36788, .73576, .24525


def test_gbpo_by_hand():
    batch, log_probs = pair()
    terms, gradient = loss_and_gradient(GbpoLoss(GbpoSettings()), batch, log_probs)
    # A > 0: max(old, p) gives 1, .5, 1; A < 0: max(old, 1 - p) gives .58198, .5, .58198
    ratios = torch.tensor([[0.5819767, 0.5, 0.5819767], [1.0, 0.5, 1.0]], dtype=torch.float64)
    assert terms.loss.item() == pytest.approx(-(2.5 - 1.6639534) / 6 * A, abs=1e-7)
    torch.testing.assert_close(gradient[0, 1:], torch.tensor([[A], [-A]]) / 6 * ratios, atol=1e-7, rtol=0)
    assert terms.metrics["bound_share"].tolist() == [3.0, 6.0]
    assert terms.metrics["ratio_mean"].tolist() == pytest.approx([ratios.sum().item(), 6.0])


def test_gbpo_bounds_every_gradient():
    generator = torch.Generator().manual_seed(0)
    log_probs = -8 * torch.rand(50, 6, 3, dtype=torch.float64, generator=generator)
    old = -8 * torch.rand(50, 6, 3, dtype=torch.float64, generator=generator)
    advantages = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    ratio = (log_probs - bounded_old(log_probs, old, advantages)).exp()
    p, positive = log_probs.exp(), (advantages >= 0)[..., None]
    assert (ratio <= torch.where(positive, 1.0, p / (1 - p)) * (1 + 1e-12)).all()
    assert (ratio < (log_probs - old).exp() * (1 + 1e-12)).all()


def test_gbpo_of_a_certain_token():
    certain = torch.tensor([[[0.0, 1e-8]]])  # rounding may exceed probability 1
    old = torch.tensor([[[-1.0, -1.0]]])
    assert bounded_old(certain, old, torch.tensor([[-1.0]])).tolist() == [[[-1.0, -1.0]]]
    assert bounded_old(certain, old, torch.tensor([[1.0]]))[0, 0].tolist() == pytest.approx(
        [0.0, 0.0], abs=1e-6
    )


# ReRe


def test_rere_rewards_the_hit_and_punishes_the_likelier_misses():
    batch, log_probs = pair(candidate_items_BK=torch.tensor([[0, 2]]))
    terms, _ = loss_and_gradient(RereLoss(RereSettings(kl_beta=0)), batch, log_probs)
    # rewards 1 and -.3868528, the second of two places; 2.7 of +A', 3.3 of -A'
    gap = 1.3868528
    assert terms.loss.item() == pytest.approx(0.6 / 6 * (gap / 2) / (gap / math.sqrt(2) + 1e-4), abs=1e-6)
    assert terms.metrics["reward/hit"].tolist() == [1.0, 2.0]
    assert terms.metrics["reward/rank_penalty"].tolist() == pytest.approx([-0.3868528, 2.0], abs=1e-6)


def test_rere_learns_nothing_from_a_group_without_a_hit():
    batch, log_probs = pair()
    terms, gradient = loss_and_gradient(RereLoss(RereSettings(kl_beta=0)), batch, log_probs)
    assert terms.loss.item() == 0 and gradient.abs().max() == 0


# All of them


def test_build():
    for settings, kind in (
        (GrpoSrObjective(alpha=0.3), GrpoSrLoss),
        (EcpoObjective(), EcpoLoss),
        (GbpoObjective(), GbpoLoss),
        (RereObjective(), RereLoss),
    ):
        objective = build_objective(settings)
        assert type(objective) is kind and objective.settings == settings.grpo and objective.needs_groups
        assert objective.needs_reference is (settings.type == "rere")
    assert build_objective(GrpoSrObjective(alpha=0.3)).alpha == 0.3


def once(function):
    """What `function` returned the first time."""
    kept = []

    def first(*arguments):
        if not kept:
            kept.append(function(*arguments))
        return kept[0]

    return first


OFF_POLICY = {"kl_beta": 0.05, "ground_truth": "inject"}
MASKED = {
    "old_policy": "batch_start",
    "correction": CorrectionSettings(level="sequence", outside="mask", high=9.0),
}


@pytest.mark.parametrize("objective", [
    GrpoLoss(GrpoSettings(ratio="sequence", advantage="rloo", **OFF_POLICY)),
    GrpoLoss(GrpoSettings(ratio="gspo", advantage="dr_grpo", clip_low=0.3, clip_high=0.6, **MASKED)),
    GrpoLoss(GrpoSettings(drop_equal_groups=True, clip_high=0.28, kl_beta=0)),
    GrpoSrLoss(0.7, GrpoSrSettings()),
    EcpoLoss(EcpoSettings(**OFF_POLICY)),
    GbpoLoss(GbpoSettings(**OFF_POLICY)),
    RereLoss(RereSettings()),
    AdaGrpoLoss(0.7, GrpoSettings(kl_beta=0.05), GateSettings(mode="soft", tau=0.5)),
], ids=["sequence", "gspo", "dapo", "grpo_sr", "ecpo", "gbpo", "rere", "soft"])  # fmt: skip
def test_gradcheck(objective, monkeypatch):
    """What the objective holds constant (sg) is held constant at the point, so that differences see the same
    loss.
    """
    generator = torch.Generator().manual_seed(1)
    batch = random_batch(prompts=2, candidates=3, candidate_items_BK=torch.tensor([[1, 5000, 2], [3, 4, -1]]))
    batch.candidate_scores_BK[:] = torch.tensor([[0.3, 0.7, -0.2], [1.0, -1.0, float("nan")]])
    start = -2 * torch.rand(2, 4, 3, dtype=torch.float64, generator=generator) - 0.1
    reference = start + 0.3 * torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    point = (start + 0.5 * torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)).clamp(max=-0.05)

    def loss(log_probs):
        return objective(objective_input(batch, scores_of(log_probs), scores_of(start), reference)).loss

    def gradient():
        leaf = leaf_of(point)
        return torch.autograd.grad(loss(leaf), leaf)[0]

    free = gradient()
    for module, name in ((ecpo, "early_clipped_old"), (gbpo, "bounded_old")):
        monkeypatch.setattr(module, name, once(getattr(module, name)))
    own = once(torch.Tensor.detach)
    monkeypatch.setattr(grpo_sr, "own_ratio", lambda log_probs: (log_probs - own(log_probs)).exp())
    assert torch.equal(gradient(), free) and free.abs().max() > 1e-3
    assert torch.autograd.gradcheck(loss, (leaf_of(point),))
