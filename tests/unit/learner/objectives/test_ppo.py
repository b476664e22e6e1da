import pytest
import torch

from sluice.learner.objectives.ppo import PpoLoss, clipped_value_loss, generalised_advantages
from sluice.learner.objectives.settings.preference import PpoObjective
from tests.unit.learner.learner_cases import NAN, objective_input, one_group
from tests.unit.learner.preference_cases import assert_nothing_to_learn, double, means, rich_batch, scores_of

INF = float("inf")
RATIOS = double([1.0, 0.5, 1.5])


def ppo(**changes):
    return PpoLoss(PpoObjective(**({"kl_coef": 0.1, "gae_lambda": 1.0} | changes)))


def pair(**changes):
    """K = 2 with rewards 1 and 3; one valid prompt."""
    values = {
        "candidates_BKL": torch.tensor([[[3, 7, 11], [4, 7, 10]]]),
        "candidate_items_BK": torch.tensor([[1, 2]]),
        "candidate_scores_BK": torch.tensor([[1.0, 3.0]]),
        "behaviour_log_probs_BKL": torch.zeros(1, 2, 3),
    }
    return one_group(**(values | changes))


def settled(batch=None, objective=None, now_value=2.1):
    """Start log-probs -1 and values 2; the reference half a nat below; ratios `RATIOS` now."""
    start = torch.full((1, 3, 3), -1.0, dtype=torch.float64)
    now, values = start + RATIOS.log(), torch.full_like(start, now_value)
    objective, batch = ppo() if objective is None else objective, pair() if batch is None else batch
    return objective(
        objective_input(
            batch, scores_of(now, values), scores_of(start, torch.full_like(start, 2.0)), start - 0.5
        )
    )


def free(batch, objective, now, start, values, start_values, reference):
    return objective(
        objective_input(batch, scores_of(now, values), scores_of(start, start_values), reference)
    )


def test_gae():
    rewards, values = double([0.0, 0.0, 1.0]), double([0.5, 0.25, 0.75])
    assert generalised_advantages(rewards, values, 1.0, 0.5).tolist() == pytest.approx([0.0625, 0.625, 0.25])
    assert generalised_advantages(rewards, values, 0.8, 0.5).tolist() == pytest.approx([-0.12, 0.45, 0.25])
    assert generalised_advantages(rewards, values, 1.0, 1.0).tolist() == pytest.approx(
        [0.5, 0.75, 0.25]
    )  # return minus value
    assert generalised_advantages(rewards, values, 1.0, 0.0).tolist() == pytest.approx(
        [-0.25, 0.5, 0.25]
    )  # one step
    assert generalised_advantages(rewards.expand(2, 4, 3), values.expand(2, 4, 3), 1.0, 0.5).shape == (
        2,
        4,
        3,
    )
    assert not generalised_advantages(rewards, values.clone().requires_grad_(), 1.0, 0.5).requires_grad


@pytest.mark.parametrize(
    ("value", "returns", "clip", "loss", "gradient"),
    [
        (1.0, 2.0, 0.2, 3.24, 0.0),  # moved too far towards the return: no further
        (1.0, 0.1, 0.2, 0.81, 1.8),  # moved past it: back
        (0.1, 2.0, 0.2, 3.61, -3.8),
        (-1.0, -2.0, 0.2, 3.24, 0.0),
        (1.0, 2.0, INF, 1.0, -2.0),
    ],
)
def test_the_value_loss_is_clipped_around_the_start(value, returns, clip, loss, gradient):
    leaf = double([value]).requires_grad_()
    found = clipped_value_loss(leaf, double([0.0]), double([returns]), clip)
    found.sum().backward()
    assert found.item() == pytest.approx(loss) and leaf.grad.item() == pytest.approx(gradient)


def test_ppo():
    # each token costs .1 * .5, so the returns are .85 .9 .95 and 2.85 2.9 2.95, the advantages those less 2
    # candidate 0: -1.15, max(-.55, -.88) -> -.88, -1.575; candidate 1: .85, .45, 1.2 * .95 = 1.14; the sum is
    # -1.165
    terms = settled()
    found = means(terms)
    assert found["policy_loss"] == pytest.approx(1.165 / 6, abs=1e-12)
    # values are 2.1 now: squared errors 1.5625 1.44 1.3225 and .5625 .64 .7225
    assert found["value_loss"] == pytest.approx(6.25 / 6, abs=1e-12)
    assert terms.loss.item() == pytest.approx(1.165 / 6 + 0.5 * 6.25 / 6, abs=1e-12)
    assert settled(objective=ppo(value_weight=2.0)).loss.item() == pytest.approx(
        (1.165 + 12.5) / 6, abs=1e-12
    )
    assert found["kl"] == pytest.approx(0.5) and found["reward"] == pytest.approx(2.0)
    assert found["clip_share"] == pytest.approx(2 / 6)  # A < 0 at .5, A > 0 at 1.5
    assert found["ratio_mean"] == pytest.approx(1.0) and found["entropy"] == 1
    assert found["loss"] == terms.loss.item() and found["nll"] == pytest.approx(3 - RATIOS.log().sum().item())
    assert found["invalid_share"] == 0 and found["hit_share"] == 0


def test_the_value_may_move_by_the_value_clip():
    # clipped at 2.2, so that the errors of candidate 1 are those of 2.2 and of candidate 0 those of 2.5
    errors = sum((2.5 - value) ** 2 for value in (0.85, 0.9, 0.95)) + sum(
        (2.2 - v) ** 2 for v in (2.85, 2.9, 2.95)
    )
    assert means(settled(now_value=2.5))["value_loss"] == pytest.approx(errors / 6, abs=1e-12)


def test_the_ratio_is_clipped_at_the_setting():
    # .5: -.55; 1.5: 1.4 * .95
    wide = means(settled(objective=ppo(clip=0.4)))["policy_loss"]
    assert wide == pytest.approx(-(-1.15 - 0.66 - 1.575 + 0.85 + 0.45 + 1.33) / 6, abs=1e-12)


def test_without_the_kl_the_reward_is_at_the_last_token():
    objective = ppo(kl_coef=0, gae_lambda=0.0)
    start = torch.full((1, 3, 3), -1.0, dtype=torch.float64)
    values = double([[[9, 9, 9], [0.5, 1.0, 2.0], [0.0, 1.0, 1.0]]])
    now = start.clone().requires_grad_()
    free(pair(), objective, now, start, values, values, None).loss.backward()
    # A: .5 1 -1 and 1 0 2; the gradient of the loss is -A / (K L)
    assert (-6 * now.grad).flatten().tolist() == pytest.approx([0, 0, 0, 0.5, 1, -1, 1, 0, 2])
    assert not objective.needs_reference and ppo().needs_reference


def random_case(prompts=3, seed=0):
    torch.manual_seed(seed)
    start = -2 * torch.rand(prompts, 5, 3, dtype=torch.float64)
    return {
        "now": start + 0.5 * torch.randn_like(start),
        "start": start,
        "values": torch.randn_like(start),
        "start_values": torch.randn_like(start),
        "reference": start + 0.3 * torch.randn_like(start),
    }


@pytest.mark.parametrize("moved", [False, True])
def test_with_an_infinite_clip_it_is_the_policy_gradient(moved):
    batch, case = rich_batch(prompts=3), random_case()
    now = (case["now"] if moved else case["start"].clone()).requires_grad_()
    objective = ppo(clip=INF, value_weight=0.0)
    free(batch, objective, **(case | {"now": now})).loss.backward()
    rewards = batch.candidate_scores_BK.double().clone()
    rewards[:, -1] = rewards[:, :-1].amin(1) - 1  # the last candidate of each group is a hallucination
    penalty = 0.1 * (case["start"] - case["reference"])[:, 1:]
    to_come = penalty.flip(-1).cumsum(-1).flip(-1)  # with lambda 1 the advantage is the return less the value
    advantages = rewards[..., None] - to_come - case["start_values"][:, 1:]
    again = now.detach().clone().requires_grad_()
    ratio = (again.detach() - case["start"])[:, 1:].exp()
    (-(ratio * advantages * again[:, 1:]).mean()).backward()
    torch.testing.assert_close(now.grad, again.grad, atol=1e-7, rtol=1e-6)
    assert moved or (ratio == 1).all()


def test_a_finite_clip_is_not():
    batch, case = rich_batch(prompts=3), random_case()
    losses = [free(batch, ppo(clip=clip), **case).loss.item() for clip in (0.2, INF)]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize(
    "objective", [ppo(gae_lambda=0.9, gamma=0.95), ppo(kl_coef=0, clip=0.05, value_clip=0.5)]
)
def test_gradcheck(objective):
    batch, case = rich_batch(prompts=2), random_case(prompts=2)
    now, values = case["now"].requires_grad_(), case["values"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda now, values: free(batch, objective, **(case | {"now": now, "values": values})).loss,
        (now, values),
    )


def test_a_hallucination_gets_the_margin_below_the_lowest():
    batch = pair(candidate_items_BK=torch.tensor([[1, -1]]), candidate_scores_BK=torch.tensor([[1.0, NAN]]))
    assert means(settled(batch, ppo(invalid_margin=0.5)))["reward"] == pytest.approx(0.75)
    assert means(settled(batch))["invalid_share"] == 0.5


def test_prompts_without_a_valid_candidate_do_not_count():
    nothing = pair(candidate_items_BK=torch.tensor([[-1, -1]]), candidate_scores_BK=torch.full((1, 2), NAN))
    case = random_case(prompts=1)
    now, values = case["now"][:, :3].clone().requires_grad_(), case["values"][:, :3].clone().requires_grad_()
    scores, start = scores_of(now, values), scores_of(case["start"][:, :3], case["start_values"][:, :3])
    assert_nothing_to_learn(ppo(), nothing, scores, start, case["reference"][:, :3])

    items = torch.tensor([[1, 2, 3, 4], [-1] * 4, [1, 2, 3, -1]])
    batch, case = (
        rich_batch(prompts=3, candidate_items_BK=items, candidate_scores_BK=torch.rand(3, 4)),
        random_case(),
    )
    terms = free(batch, ppo(), **case)
    kept = {name: value[[0, 2]] for name, value in case.items()}
    tensors = {name: value[[0, 2]] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    other = free(type(batch)(**(vars(batch) | tensors)), ppo(), **kept)
    assert ppo().normaliser(batch).item() == 2 and terms.loss.item() == pytest.approx(
        other.loss.item(), abs=1e-12
    )


def test_needs():
    assert ppo().needs_values and ppo().needs_groups
