import pytest
import torch

from sluice.learner.objectives.terms.advantages import group_advantages


def grpo_advantages(rewards_BK):
    return group_advantages(rewards_BK, "grpo")


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        # mean 2.5, std sqrt(5/3) = 1.2909944, plus 1e-4
        ([1.0, 2.0, 3.0, 4.0], [-1.1618050, -0.3872683, 0.3872683, 1.1618050]),
        # mean 2, std sqrt(2) = 1.4142136
        ([1.0, 3.0], [-0.7070568, 0.7070568]),
        # mean 0.01, std 0.02: here the floor of 1e-4 shows
        ([0.0, 0.0, 0.0, 0.04], [-0.4975124, -0.4975124, -0.4975124, 1.4925373]),
    ],
)
def test_hand_computed(rewards, advantages):
    found = grpo_advantages(torch.tensor([rewards], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([advantages], dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_equal_rewards_give_exact_zeros(value):
    assert grpo_advantages(torch.full((2, 7), value)).tolist() == [[0.0] * 7] * 2


def test_groups_do_not_mix():
    both = grpo_advantages(torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]]))
    assert torch.equal(both[0], grpo_advantages(torch.tensor([[1.0, 2.0, 3.0]]))[0])
    assert torch.equal(both[1], grpo_advantages(torch.tensor([[10.0, 10.0, 40.0]]))[0])


def test_no_gradient_passes():
    assert not grpo_advantages(torch.randn(2, 4, requires_grad=True)).requires_grad
