from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sluice.learner.scoring.branch_attention import MergedAttention, PackedRow, attend_row, masked_attention

SCALE = 0.6


def owners(row):
    """(prompt, branch, place within it) of every token, in the order of the row; branch -1 is the history."""
    tokens = [(b, -1, t) for b, length in enumerate(row.history_lengths) for t in range(length)]
    prompts = range(len(row.history_lengths))
    return tokens + [(b, s, f) for b in prompts for s in range(row.branches) for f in range(row.fed)]


def sees(query, key):
    same_prompt, same_branch = query[0] == key[0], query[1] == key[1]
    return same_prompt and ((same_branch and key[2] <= query[2]) or (key[1] == -1 and query[1] >= 0))


def dense(query_1HMd, key_1HNd, value_1HNd, row):
    """Softmax under the mask over the whole row, entry by entry as the module's docstring says it."""
    tokens = owners(row)
    queries = tokens
    if row.last_only:
        queries = [
            token for token in tokens if token[1] >= 0 or token[2] == row.history_lengths[token[0]] - 1
        ]
    mask_MP = torch.tensor([[sees(query, key) for key in tokens] for query in queries])
    score = (query_1HMd @ key_1HNd.mT * SCALE).masked_fill(~mask_MP, -torch.inf)
    return (score.softmax(dim=-1) @ value_1HNd).transpose(1, 2)


def inputs(row, heads=2, key_heads=2, dtype=torch.float64):
    torch.manual_seed(0)
    keys = len(owners(row))
    queries = keys - row.branch_start + row.query_start

    def draw(tokens, heads):
        return (2 * torch.randn(1, tokens, heads, 4, dtype=dtype)).transpose(1, 2).requires_grad_()

    return draw(queries, heads), draw(keys, key_heads), draw(keys, key_heads)


ROW = PackedRow(history_lengths=(5, 1, 8), branches=3, fed=3)
ROWS = {
    "whole": ROW,
    "last layer": replace(ROW, last_only=True),
    "one token fed": replace(ROW, fed=1),
    "one prompt, one branch": PackedRow(history_lengths=(4,), branches=1, fed=2),
}
WAYS = {"merged": MergedAttention.apply, "masked": masked_attention}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("way", WAYS)
def test_equals_a_softmax_under_the_whole_mask(row, way):
    given = inputs(row)
    found, expected = WAYS[way](*given, row, SCALE), dense(*given, row)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, given, weights)
    for gradient, expected_gradient in zip(torch.autograd.grad(found, given, weights), wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-12, rtol=1e-12)


def test_scores_far_apart_do_not_overflow():
    query, key, value = inputs(ROW, dtype=torch.float32)
    far = (query * 100, key * 100, value)
    found = MergedAttention.apply(*far, ROW, SCALE)
    torch.testing.assert_close(found, dense(*far, ROW), atol=1e-5, rtol=1e-5)
    assert all(
        torch.isfinite(gradient).all() for gradient in torch.autograd.grad(found.sum(), (query, key, value))
    )


@pytest.mark.parametrize("last_only", [False, True])
def test_items_of_one_token_have_histories_only(last_only):
    row = replace(ROW, fed=0, last_only=last_only)
    given = inputs(row)
    found, _ = attend_row(None, *given, None, packed_row=row, scaling=SCALE)
    torch.testing.assert_close(found, dense(*given, row), atol=1e-12, rtol=1e-12)


def test_grouped_heads_share_keys_and_the_scale_defaults_to_the_head_size():
    query, key, value = inputs(ROW, heads=4, key_heads=2)
    found, _ = attend_row(None, query, key, value, None, packed_row=ROW)
    several = [part[:, [0, 0, 1, 1]] for part in (key, value)]
    expected = dense(query * (0.5 / SCALE), *several, ROW)  # heads of size 4: 1 / sqrt(4)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_queries_and_keys_in_another_precision_follow_the_values():
    query, key, value = inputs(ROW, dtype=torch.float32)
    found, _ = attend_row(None, query, key, value.bfloat16(), None, packed_row=ROW, scaling=SCALE)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), dense(query, key, value, ROW), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 10}, "11 tokens do not fit the model's sliding window of 10"),
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
    ],
)
def test_other_attention_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        attend_row(SimpleNamespace(), *inputs(ROW), None, packed_row=ROW, **changes)


def test_a_window_that_holds_everything_is_no_window():
    given = inputs(ROW)
    found, _ = attend_row(None, *given, None, packed_row=ROW, scaling=SCALE, sliding_window=11, softcap=None)
    torch.testing.assert_close(found, dense(*given, ROW), atol=1e-12, rtol=1e-12)


def test_a_mask_is_refused():
    with pytest.raises(ValueError, match="attention with a mask does not work"):
        attend_row(None, *inputs(ROW), torch.ones(1, 1, 1, 1, dtype=torch.bool), packed_row=ROW)
