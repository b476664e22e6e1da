"""The heads' scales, losses and predictions by hand."""

import math

import pytest
import torch

from sluice.learner.ranker.heads import ClickHead, DwellHead, OutcomeHead

NAN = float("nan")


def test_a_head_is_linear_in_state_and_item():
    head = OutcomeHead(items=3, hidden_size=2)
    with torch.no_grad():
        head.query.weight.copy_(torch.eye(2))
        head.query.bias.zero_()
        head.user.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.user.bias.fill_(0.5)
        head.item.copy_(torch.tensor([0.0, 0.25, 0.0, 0.0]))
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    # (1, 2) . (3, 4) + (1 * 1 + 0.5) + 0.25
    assert head(torch.tensor([1.0, 2.0]), torch.tensor(1), vectors).item() == pytest.approx(12.75)
    # The same state for two candidates: the second is (1, 2) . (0, 1) + 1.5
    states, candidates = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[1, 2]])
    assert head(states, candidates, vectors).tolist() == [[12.75, 3.5]]


def test_ratings_are_standardised():
    head = OutcomeHead(1, 1)
    head.fit_scale(torch.tensor([1.0, 5.0]))  # mean 3, deviation 2
    assert head.expected(torch.tensor([0.0, 0.5, -1.0])).tolist() == [3, 4, 1]
    assert head.value(torch.tensor(0.5)).item() == 4
    z = torch.tensor([0.5, 7.0, 1.0], requires_grad=True)
    loss = head.loss(z, torch.tensor([5.0, NAN, 1.0]))  # (0.5 - 1)^2 and (1 + 1)^2
    loss.backward()
    assert loss.item() == pytest.approx((0.25 + 4) / 2)
    assert z.grad.tolist() == [-0.5, 0, 2]


def test_equal_ratings_have_a_scale():
    head = OutcomeHead(1, 1)
    head.fit_scale(torch.tensor([4.0, 4.0]))
    assert head.expected(torch.tensor(0.5)).item() == 4.5


@pytest.mark.parametrize("kind", [OutcomeHead, ClickHead, DwellHead])
def test_nothing_known_costs_nothing(kind):
    z = torch.tensor([0.5, 7.0], requires_grad=True)
    loss = kind(1, 1).loss(z, torch.tensor([NAN, NAN]))
    loss.backward()
    assert loss.item() == 0
    assert z.grad.tolist() == [0, 0]


def test_dwell_times_are_fitted_as_logarithms_and_predicted_in_seconds():
    head, times = DwellHead(1, 1), torch.tensor([math.e - 1, math.e**3 - 1])  # log(1 + y) is 1 and 3
    head.fit_scale(times)
    assert head.transform(times).tolist() == pytest.approx([1, 3])
    assert head.expected(torch.tensor(1.0)).item() == pytest.approx(3)
    assert head.loss(torch.tensor([0.5, 0.5]), times).item() == pytest.approx((1.5**2 + 0.5**2) / 2)
    assert head.value(torch.tensor(0.0)).item() == pytest.approx(math.e**2 - 1, rel=1e-5)
    head.fit_smearing(torch.tensor([0.0, 0.0]), times)  # the errors on the logarithm are -1 and 1
    mean_of_both = (math.e + math.e**3) / 2 - 1
    assert head.value(torch.tensor(0.0)).item() == pytest.approx(mean_of_both, rel=1e-5)
    assert head.value(torch.tensor(-50.0)).item() == 0


def test_clicks_are_probabilities():
    head = ClickHead(1, 1)
    head.fit_scale(torch.tensor([0.0, 0.0]))  # with one click and one miss more: 1 of 4
    assert head.expected(torch.tensor(0.0)).item() == pytest.approx(0.25)
    assert head.expected(torch.tensor(math.log(3))).item() == pytest.approx(0.5)
    assert head.value(torch.tensor(0.0)).item() == pytest.approx(0.25)
    loss = head.loss(torch.zeros(3), torch.tensor([1.0, 0.0, NAN]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
