"""The decoder over packed tokens against transformers' own forward."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sluice.catalog.errors import PolicyError
from sluice.learner.decoding import attention as tree_attention
from sluice.learner.decoding.attention import HistoryAttention, RowGeometry
from sluice.learner.decoding.forward import _General, _Lean, forward_of, project_tokens
from tests.unit.learner.learner_cases import sharpen
from tests.unit.learner.tree_cases import HISTORIES, SIZES, models

MODELS = models()


def run(model, forward, histories, wanted=None):
    """Hidden states of all tokens, or of the wanted (row, position) pairs. Rows are longest first."""
    lengths = np.asarray([len(history) for history in histories])
    geometry = RowGeometry(known_R=np.zeros_like(lengths), lengths_R=lengths)
    row_P, position_P = geometry.packed()
    tokens_P = torch.tensor(
        [histories[row][position] for row, position in zip(row_P, position_P, strict=True)]
    )
    everything = (row_P, position_P)
    rows, positions = (
        everything if wanted is None else (np.asarray(part) for part in zip(*wanted, strict=True))
    )
    place = (
        None if wanted is None else torch.tensor([everything_at(row_P, position_P, *one) for one in wanted])
    )
    attention = HistoryAttention(geometry, {}, (rows, positions), model.device)
    with torch.no_grad():
        return forward(tokens_P, torch.from_numpy(position_P), attention, place)


def everything_at(row_P, position_P, row, position):
    return int(np.flatnonzero((row_P == row) & (position_P == position))[0])


def expected(model, histories):
    with torch.no_grad():
        return torch.cat([model.get_decoder()(torch.tensor([one])).last_hidden_state[0] for one in histories])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_projection_is_the_layer_or_some_rows_of_it(bias, dtype):
    layer = torch.nn.Linear(24, 40, bias=bias).to(dtype)
    x = torch.randn(5, 3, 24).to(dtype)
    wanted = layer(x)
    for rows in (slice(None), slice(7, 19)):
        torch.testing.assert_close(project_tokens(layer, x, rows), wanted[..., rows], atol=1e-5, rtol=1e-5)
    parametrize.register_parametrization(
        layer, "weight", torch.nn.Identity()
    )  # a layer that is no plain one now
    assert type(layer) is not torch.nn.Linear
    torch.testing.assert_close(project_tokens(layer, x, slice(7, 19)), wanted[..., 7:19])


@pytest.mark.parametrize("name", MODELS)
def test_packed_tokens_have_the_hidden_states_of_plain_rows(name):
    model = MODELS[name]()
    forward = forward_of(model)
    assert isinstance(forward, _General if name in ("gpt2", "phi") else _Lean)
    torch.testing.assert_close(
        run(model, forward, HISTORIES), expected(model, HISTORIES), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("by_blocks", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2"])
def test_histories_of_many_blocks_have_the_hidden_states_of_plain_rows(name, by_blocks, monkeypatch):
    monkeypatch.setattr(tree_attention, "_by_blocks", lambda _: by_blocks)
    monkeypatch.setattr(tree_attention, "_SCORES", 32 * 64 * 3)  # of one or a few heads
    model = MODELS[name]()
    lengths = [64, 63, 50, 40, 33, 33, 32, 31, 5, 1]  # 281 tokens of a vocabulary of 15
    histories = [
        torch.randint(0, 15, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths
    ]
    torch.testing.assert_close(
        run(model, forward_of(model), histories), expected(model, histories), atol=5e-5, rtol=2e-4
    )
    wanted = [(row, length - 1) for row, length in enumerate(lengths)]
    ends = expected(model, histories)[np.cumsum(lengths) - 1]
    torch.testing.assert_close(run(model, forward_of(model), histories, wanted), ends, atol=5e-5, rtol=2e-4)


def test_blocks_of_half_precision_are_as_exact_as_their_result_can_be():
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(2, heads, 70, 48, generator=generator).bfloat16() for heads in (4, 2, 2)
    )  # sqrt(48) is no power of two
    found = tree_attention._causal_by_blocks(queries, keys, values, np.array([70, 40]), 48**-0.5)
    exact = torch.nn.functional.scaled_dot_product_attention(
        queries.double(),
        *(part.double().repeat_interleave(2, dim=1) for part in (keys, values)),
        is_causal=True,
    )
    assert found.dtype == torch.bfloat16
    for row, length in enumerate((70, 40)):
        wanted = exact[row, :, :length]
        error, rounding = (
            (part.double() - wanted).square().mean() for part in (found[row, :, :length], wanted.bfloat16())
        )
        assert error < 1.1 * rounding


def test_the_only_layer_asks_for_wanted_tokens_of_its_table():
    model = Qwen2ForCausalLM._from_config(
        Qwen2Config(vocab_size=15, num_key_value_heads=2, **SIZES | {"num_hidden_layers": 1}),
        attn_implementation="sdpa",
    ).eval()
    histories = [[1, 3, 7, 10, 4, 8, 11] * 4, [1, 6, 9, 14] * 3]
    wanted = [(1, 11), (0, 27)]
    torch.testing.assert_close(
        run(sharpen(model), forward_of(model), histories, wanted),
        expected(model, histories)[[39, 27]],
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2"])
def test_wanted_tokens_are_picked_in_any_order(name):
    model = MODELS[name]()
    wanted = [(2, 3), (0, 2), (0, 6), (1, 0)]
    whole = expected(model, HISTORIES)
    hidden = run(model, forward_of(model), HISTORIES, wanted)
    torch.testing.assert_close(hidden, whole[[14, 2, 6, 7]], atol=2e-5, rtol=1e-4)


def test_both_forwards_agree_on_a_model_that_either_takes():
    model = MODELS["llama"]()
    lean, general = (run(model, kind(model.get_decoder()), HISTORIES) for kind in (_Lean, _General))
    torch.testing.assert_close(lean, general, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_half_precision_norms_in_full(name):
    model = MODELS[name]().bfloat16()
    hidden, plain = run(model, forward_of(model), HISTORIES), expected(model, HISTORIES)
    assert hidden.dtype == torch.bfloat16
    assert (hidden - plain).float().abs().max() <= 0.1 * plain.float().abs().max()


def test_the_models_own_attention_comes_back_even_after_a_failure():
    model = MODELS["gpt2"]()
    before = model.config._attn_implementation
    run(model, forward_of(model), HISTORIES)
    assert model.config._attn_implementation == before
    with pytest.raises(IndexError):
        run(model, forward_of(model), [[1, 99]])
    assert model.config._attn_implementation == before
    torch.testing.assert_close(run(model, forward_of(model), HISTORIES), expected(model, HISTORIES))


def test_attention_that_we_do_not_compute_is_refused():
    sizes = {"vocab_size": 15, "num_key_value_heads": 2, **SIZES}
    windowed = Qwen2Config(use_sliding_window=True, sliding_window=2, max_window_layers=1, **sizes)
    capped = Gemma2Config(head_dim=4, layer_types=["full_attention"] * 2, **sizes)
    for kind, config in ((Qwen2ForCausalLM, windowed), (Gemma2ForCausalLM, capped)):
        model = kind._from_config(config, attn_implementation="eager").eval()
        with pytest.raises(PolicyError, match="sliding-window or soft-capped"):
            run(model, forward_of(model), HISTORIES)


def test_a_model_whose_layers_attend_on_their_own_is_refused():
    model = sharpen(MODELS["gpt2"]())
    block = model.transformer.h[1].attn
    block.forward = lambda hidden, *_, **__: (hidden, None)
    with pytest.raises(PolicyError, match="does not send every layer's attention"):
        run(model, forward_of(model), HISTORIES)
