"""Draws by hand."""

import numpy as np
import pytest
import torch

from sluice.learner.decoding.draw import (
    distinct_values,
    draw_codes,
    log_inclusion,
    log_softmax,
    nucleus_logits,
    perturb_totals,
    random_streams,
)

INF = float("inf")


def shares(*rows):
    return torch.tensor(rows).log()


def test_log_softmax_has_no_nan_where_nothing_is_possible():
    log_p = log_softmax(torch.tensor([[-INF, -INF], [0.0, np.log(3.0)], [-INF, 5.0]]))
    expected = [[-INF, -INF], [np.log(0.25), np.log(0.75)], [-INF, 0.0]]
    np.testing.assert_allclose(log_p.numpy(), np.asarray(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, [1]),
        (0.05, [1]),
        (0.45, [1]),
        (0.55, [1, 2]),
        (0.65, [1, 2]),
        (0.85, [0, 1, 2]),
        (0.95, [0, 1, 2, 3]),
    ],
)
def test_the_nucleus_by_hand(top_p, kept):
    # cumulated from the least likely up: 0.1, 0.3, 0.5001, 1
    logits = shares([0.2, 0.4999, 0.2001, 0.1])
    cut = nucleus_logits(logits, top_p)
    assert torch.isfinite(cut[0]).nonzero().flatten().tolist() == kept
    assert torch.equal(cut[0][kept], logits[0][kept])


def test_the_nucleus_leaves_masked_tokens_masked():
    cut = nucleus_logits(torch.tensor([[-INF, 0.0, -INF, 0.0, -1.0]]), 0.99)
    assert torch.isfinite(cut[0]).tolist() == [False, True, False, True, True]


def test_a_draw_is_the_first_share_above_the_number():
    log_p = shares([0.25, 0.0, 0.25, 0.5])[None]
    numbers = torch.tensor([[0.0, 0.2499, 0.25, 0.4999, 0.5, 0.75, 0.9999999]])
    drawn = draw_codes(log_p, torch.zeros(1, 7, dtype=torch.int64), numbers)
    assert drawn.tolist() == [[0, 0, 2, 2, 3, 3, 3]]


def test_what_is_impossible_is_not_drawn_at_the_ends():
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    log_p = shares([0.0, 0.3, 0.7, 0.0])[None]
    assert draw_codes(
        log_p, torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0.0, largest]])
    ).tolist() == [[1, 2]]
    # shares that add up to a bit less than 1, as float32 ones do
    short = (torch.tensor([[[0.3, 0.6999, 0.0]]])).log()
    assert draw_codes(short, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[largest]])).tolist() == [
        [1]
    ]
    # whatever the total is
    totals = torch.cat([torch.linspace(0.5, 1.1, 10001), torch.tensor([0.5, 1.0])])
    log_p = torch.stack([totals, torch.zeros_like(totals)], dim=-1)[:, None].log()
    zeros, numbers = torch.zeros(len(totals), 1, dtype=torch.int64), torch.full((len(totals), 1), largest)
    assert (draw_codes(log_p, zeros, numbers) == 0).all()


def test_candidates_draw_from_their_own_branch():
    log_p = torch.stack([shares([1.0, 0.0], [0.0, 1.0]), shares([0.5, 0.5], [0.25, 0.75])])
    branch = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]])
    numbers = torch.tensor([[0.9, 0.0, 0.5, 0.0], [0.4, 0.6, 0.2, 0.3]])
    assert draw_codes(log_p, branch, numbers).tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]


def test_distinct_by_hand():
    values, place = distinct_values(torch.tensor([[7, 3, 7, 9], [5, 5, 5, 5], [4, 2, 4, 2]]))
    assert values.tolist() == [[3, 7, 9], [5, 5, 5], [2, 4, 2]]
    assert place.tolist() == [[1, 0, 1, 2], [0, 0, 0, 0], [1, 0, 1, 0]]


def test_numbers_depend_on_their_own_key():
    one, two = bytes(range(16)), bytes(range(1, 17))
    (alone,), (other, together) = random_streams([one]), random_streams([two, one])
    first = alone.random(5)
    assert (together.random(5) == first).all() and (other.random(5) != first).all()


def test_the_largest_of_a_family_is_what_it_was_given_and_the_others_follow_the_formula():
    totals = torch.tensor([[[-1.0, -2.0, -3.0]]], dtype=torch.float64)
    noise = torch.tensor([[[0.5, 2.5, 0.0]]], dtype=torch.float64)  # G = -0.5, 0.5, -3; Z = 0.5
    values = perturb_totals(totals, noise, torch.tensor([[-0.25]], dtype=torch.float64))
    expected = [
        -np.log(np.exp(0.25) - np.exp(-0.5) + np.exp(0.5)),
        -0.25,
        -np.log(np.exp(0.25) - np.exp(-0.5) + np.exp(3)),
    ]
    np.testing.assert_allclose(values[0, 0], expected, atol=1e-12)


def test_perturbing_is_stable_and_keeps_the_impossible_so():
    totals = torch.tensor([[[-1.0, -INF, -900.0], [-INF, -INF, -INF]]], dtype=torch.float64)
    noise = torch.tensor([[[1.0, 50.0, 0.0], [1.0, 2.0, 3.0]]], dtype=torch.float64)
    values = perturb_totals(totals, noise, torch.tensor([[2.0, -INF]], dtype=torch.float64))
    np.testing.assert_allclose(values[0], [[2.0, -INF, -900.0], [-INF, -INF, -INF]], atol=1e-9)
    # all within one family: G = Z = largest in the limit of a huge shift
    far = perturb_totals(totals[:, :1] - 2000, noise[:, :1], torch.tensor([[-2000.0]], dtype=torch.float64))
    assert far[0, 0, 0] == -2000 and not torch.isnan(far).any()


def test_perturbed_values_for_a_larger_and_a_smaller_family():
    # exp(-G): 1/4, 1/2, 1; Z has 1/4. The largest is to have exp(-T) = 1/8: 1/8 - 1/4 + [1/4, 1/2, 1] = 1/8,
    # 3/8, 7/8.
    totals = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64).log()
    noise = torch.full((1, 3), np.log(2), dtype=torch.float64)
    values = perturb_totals(totals, noise, torch.tensor([np.log(8.0)]))
    np.testing.assert_allclose(values, np.log([[8, 8 / 3, 8 / 7]]), rtol=1e-12)
    # And to have 1/2: 1/2 - 1/4 + [1/4, 1/2, 1] = 1/2, 3/4, 5/4.
    values = perturb_totals(totals, noise, torch.tensor([np.log(2.0)]))
    np.testing.assert_allclose(values, np.log([[2, 4 / 3, 4 / 5]]), rtol=1e-12)


def test_each_family_has_its_parent_s_value_as_its_largest():
    rng = np.random.default_rng(1)
    totals = np.log(rng.dirichlet(np.full(6, 0.1), size=50)) - 5
    totals[:, 2] = -np.inf
    largest = rng.gumbel(size=50) - 5
    values = perturb_totals(*map(torch.from_numpy, (totals, rng.gumbel(size=(50, 6)), largest))).numpy()
    assert (values.max(axis=1) == largest).all()
    assert (values[:, 2] == -np.inf).all() and not np.isnan(values).any()


def test_inclusion_by_hand():
    # l - kappa = log(log 2) gives exp(-log 2) = 1/2.
    totals = [-1.0, -1.0, np.log(np.log(2)) + 1.5, -20.0, -31.0, -900.0, -3.0, 40.0, 900.0]
    kappa = [-1.0, -3.0, 1.5, 0.0, 0.0, 0.0, -INF, 0.0, 0.0]
    expected = [np.log(1 - np.exp(-1)), np.log(1 - np.exp(-np.exp(2))), np.log(0.5)]
    expected += [-20 - np.exp(-20) / 2, -31, -900, 0, 0, 0]
    values = log_inclusion(*(torch.tensor(one, dtype=torch.float64) for one in (totals, kappa)))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
