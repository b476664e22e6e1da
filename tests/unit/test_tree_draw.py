"""Draws by hand."""

import numpy as np
import pytest
import torch

from learner.tree_draw import distinct, draw, log_softmax, nucleus, uniforms

INF = float("inf")


def shares(*rows):
    return torch.tensor(rows).log()


def test_log_softmax_has_no_nan_where_nothing_is_possible():
    log_p = log_softmax(torch.tensor([[-INF, -INF], [0.0, np.log(3.0)], [-INF, 5.0]]))
    expected = [[-INF, -INF], [np.log(0.25), np.log(0.75)], [-INF, 0.0]]
    np.testing.assert_allclose(log_p.numpy(), np.asarray(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.05, [1]), (0.45, [1]), (0.55, [1, 2]), (0.65, [1, 2]), (0.85, [0, 1, 2]), (0.95, [0, 1, 2, 3])],
)
def test_the_nucleus_by_hand(top_p, kept):
    # cumulated from the least likely up: 0.1, 0.3, 0.5001, 1
    logits = shares([0.2, 0.4999, 0.2001, 0.1])
    cut = nucleus(logits, top_p)
    assert torch.isfinite(cut[0]).nonzero().flatten().tolist() == kept
    assert torch.equal(cut[0][kept], logits[0][kept])


def test_the_nucleus_leaves_masked_tokens_masked():
    cut = nucleus(torch.tensor([[-INF, 0.0, -INF, 0.0, -1.0]]), 0.99)
    assert torch.isfinite(cut[0]).tolist() == [False, True, False, True, True]


def test_a_draw_is_the_first_share_above_the_number():
    log_p = shares([0.25, 0.0, 0.25, 0.5])[None]
    numbers = torch.tensor([[0.0, 0.2499, 0.25, 0.4999, 0.5, 0.75, 0.9999999]])
    drawn = draw(log_p, torch.zeros(1, 7, dtype=torch.int64), numbers)
    assert drawn.tolist() == [[0, 0, 2, 2, 3, 3, 3]]


def test_what_is_impossible_is_not_drawn_at_the_ends():
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    log_p = shares([0.0, 0.3, 0.7, 0.0])[None]
    assert draw(log_p, torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0.0, largest]])).tolist() == [[1, 2]]
    # shares that add up to a bit less than 1, as float32 ones do
    short = (torch.tensor([[[0.3, 0.6999, 0.0]]])).log()
    assert draw(short, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[largest]])).tolist() == [[1]]
    # whatever the total is
    totals = torch.cat([torch.linspace(0.5, 1.1, 10001), torch.tensor([0.5, 1.0])])
    log_p = torch.stack([totals, torch.zeros_like(totals)], dim=-1)[:, None].log()
    zeros, numbers = torch.zeros(len(totals), 1, dtype=torch.int64), torch.full((len(totals), 1), largest)
    assert (draw(log_p, zeros, numbers) == 0).all()


def test_candidates_draw_from_their_own_branch():
    log_p = torch.stack([shares([1.0, 0.0], [0.0, 1.0]), shares([0.5, 0.5], [0.25, 0.75])])
    branch = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]])
    numbers = torch.tensor([[0.9, 0.0, 0.5, 0.0], [0.4, 0.6, 0.2, 0.3]])
    assert draw(log_p, branch, numbers).tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]


def test_distinct_by_hand():
    values, place = distinct(torch.tensor([[7, 3, 7, 9], [5, 5, 5, 5], [4, 2, 4, 2]]))
    assert values.tolist() == [[3, 7, 9], [5, 5, 5], [2, 4, 2]]
    assert place.tolist() == [[1, 0, 1, 2], [0, 0, 0, 0], [1, 0, 1, 0]]


def test_numbers_depend_on_their_own_key():
    one, two = bytes(range(16)), bytes(range(1, 17))
    alone, together = uniforms([one], 3, 2), uniforms([two, one], 3, 2)
    assert alone.shape == (1, 3, 2) and alone.dtype == np.float32
    assert (together[1] == alone[0]).all() and (together[0] != alone[0]).all()
    many = uniforms([one], 5000)[0]
    assert 0 <= many.min() < 0.01 and 0.99 < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.02
