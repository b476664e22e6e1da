import math
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sluice.catalog.decoding import PLAIN_POLICY, Decoding
from sluice.learner.scoring.packed_forward import LLAMA_STYLE
from sluice.learner.scoring.shared_prefix import BranchScorer, branch_log_probs
from sluice.learner.training.objective import build_objective
from tests.per_sequence import PerSequenceScorer
from tests.unit.learner.learner_cases import (
    in_double,
    objective_input,
    random_batch,
    sharpen,
    tiny_llama,
    tiny_policy,
)


def branches_of(batch):
    return torch.cat([batch.target_BL[:, None], batch.candidates_BKL], dim=1)


def shared(model, batch, allowed_BSLV=None, decoding=PLAIN_POLICY, value_head=None):
    return branch_log_probs(
        model,
        batch.history_BT,
        batch.history_lengths_B,
        branches_of(batch),
        allowed_BSLV,
        decoding,
        value_head,
    )


def per_sequence(model, batch, allowed_BSLV=None, decoding=PLAIN_POLICY, value_head=None):
    scorer = PerSequenceScorer(model, value_head)
    return scorer(batch.history_BT, batch.history_lengths_B, branches_of(batch), allowed_BSLV, decoding)


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(found, expected, tolerance, what=""):
    """Within `tolerance` of the larger of 1 and the largest expected number."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(
        found / scale, expected / scale, atol=tolerance, rtol=0, msg=lambda text: what + text
    )


def tiny(model_class, config_class, **changes):
    torch.manual_seed(2)
    sizes = {"vocab_size": 15, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return model_class(config_class(**(sizes | heads | changes), attn_implementation="sdpa")).eval()


MODELS = {
    "qwen3": lambda: tiny_policy().model,
    "llama": tiny_llama,
    "qwen2": lambda: tiny(Qwen2ForCausalLM, Qwen2Config),
    "mistral": lambda: tiny(MistralForCausalLM, MistralConfig, sliding_window=None),
    "olmo2": lambda: tiny(Olmo2ForCausalLM, Olmo2Config),  # not Llama-style: its last layer is computed whole
}
PRECISIONS = ((torch.float32, 1e-5), (torch.float64, 1e-10))


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", ["plain", "temperature", "constrained", "constrained, temperature"])
def test_equals_one_forward_per_sequence(architecture, dtype, tolerance, case):
    model = MODELS[architecture]()
    if dtype == torch.float64:
        model = in_double(model)
    torch.manual_seed(0)
    value_head = nn.Linear(16, 1).to(dtype)
    both = nn.ModuleList([model, value_head])
    batch = random_batch(constrained="constrained" in case)
    decoding = Decoding(candidates=1, temperature=0.7 if "temperature" in case else 1.0)
    expected = per_sequence(model, batch, batch.allowed_BSLV, decoding, value_head)
    scores = shared(model, batch, batch.allowed_BSLV, decoding, value_head)
    for name, wanted in expected._asdict().items():
        assert_close(getattr(scores, name), wanted, tolerance, f"{name}: ")

    weights, value_weights = (
        torch.randn_like(expected.log_probs_BSL),
        torch.randn_like(expected.log_probs_BSL),
    )

    def loss(of):
        return (
            of.log_probs_BSL * weights + of.values_BSL * value_weights
        ).sum() + of.target_log_probs_BL.sum()

    wanted, found = gradients(both, loss(expected)), gradients(both, loss(scores))
    assert wanted.keys() == found.keys() == dict(both.named_parameters()).keys()
    for name, gradient in wanted.items():
        assert_close(found[name], gradient, tolerance, f"{name}: ")


def test_which_architectures_skip_most_of_their_last_layer():
    skip = {name for name, make in MODELS.items() if isinstance(make().get_decoder().layers[-1], LLAMA_STYLE)}
    assert skip == set(MODELS) - {"olmo2"}


OBJECTIVES = {
    settings.model_fields["type"].default: settings
    for settings in get_args(get_type_hints(build_objective)["settings"])
}


def full_batch(**changes):
    """Every optional field filled, so that any objective finds what it asks for."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    optional = {
        "logged_rewards_B": 1 + 4 * draw(4),
        "inclusion_log_probs_BK": -draw(4, 4),
        "candidate_spread_BK": 0.2 * draw(4, 4),
        "target_spread_B": 0.2 * draw(4),
        "candidate_values_BK": 1 + 4 * draw(4, 4),
        "target_values_B": 1 + 4 * draw(4),
        "candidate_popularity_BK": draw(4, 4),
    }
    return random_batch(**(optional | changes))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_every_objective_has_the_loss_and_gradient_of_one_row_per_sequence(
    name, architecture, dtype, tolerance
):
    objective = build_objective(OBJECTIVES[name]())
    constrained = architecture == "llama"
    batch = full_batch(constrained=constrained, temperature=0.7 if constrained else 1.0)
    model, reference = MODELS[architecture](), MODELS[architecture]()
    with torch.no_grad():
        for number, parameter in enumerate(reference.parameters()):
            parameter.mul_(1.1 if number % 2 else 0.9)
    if dtype == torch.float64:
        model, reference = in_double(model), in_double(reference)
    torch.manual_seed(0)
    value_head = nn.Linear(16, 1).to(dtype) if objective.needs_values else None

    def outcome(scorer_class):
        inputs = objective.select_branches(batch)
        arguments = (batch.history_BT, batch.history_lengths_B, *vars(inputs).values())
        scorer = scorer_class(model, value_head)
        scores = scorer(*arguments)
        with torch.no_grad():
            reference_BSL = (
                scorer_class(reference)(*arguments).log_probs_BSL if objective.needs_reference else None
            )
        loss = objective(objective_input(batch, scores, scores.detach(), reference_BSL)).loss
        return loss.detach(), gradients(scorer, loss)

    loss, found = outcome(BranchScorer)
    expected_loss, expected = outcome(PerSequenceScorer)
    assert any(gradient.abs().max() > 1e-6 for gradient in expected.values())
    assert_close(loss, expected_loss, tolerance, "loss: ")
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert_close(found[parameter], gradient, tolerance, f"{parameter}: ")


def test_padding_tokens_and_width_do_not_matter():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    expected = shared(model, batch).log_probs_BSL
    padding = torch.arange(20)[None] >= batch.history_lengths_B[:, None]
    wider = torch.cat([batch.history_BT, torch.zeros(4, 7, dtype=torch.int64)], dim=1).masked_fill(padding, 9)
    found = branch_log_probs(model, wider, batch.history_lengths_B, branches_of(batch)).log_probs_BSL
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_branch_does_not_see_the_others():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    together = shared(model, batch).log_probs_BSL
    alone = branch_log_probs(model, batch.history_BT, batch.history_lengths_B, batch.candidates_BKL[:, 2:3])
    torch.testing.assert_close(alone.log_probs_BSL[:, 0], together[:, 3], atol=1e-12, rtol=1e-12)


def test_items_of_one_token():
    model = tiny_policy().model.double()
    batch = random_batch(
        target_BL=torch.tensor([[3], [4], [5], [6]]), candidates_BKL=torch.tensor([[[5], [3]]] * 4)
    )
    scores = shared(model, batch)
    assert scores.log_probs_BSL.shape == (4, 3, 1)
    expected = per_sequence(model, batch).log_probs_BSL
    torch.testing.assert_close(scores.log_probs_BSL, expected, atol=1e-12, rtol=1e-12)


def test_a_forced_token_has_log_prob_zero_and_a_pair_is_renormalised():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    allowed = torch.zeros(4, 5, 3, 15, dtype=torch.bool)
    allowed.scatter_(-1, branches_of(batch)[..., None], True)
    scores = shared(model, batch, allowed)
    assert scores.log_probs_BSL.abs().max() == 0 and scores.entropy_BSL.abs().max() == 0
    # EOS joins at the first level: p(token) / (p(token) + p(EOS)), from the free distribution of either
    allowed[:, :, 0, 2] = True
    eos = branches_of(batch).clone()
    eos[..., 0] = 2
    free = shared(model, batch).log_probs_BSL[..., 0].exp()
    free_eos = (
        branch_log_probs(model, batch.history_BT, batch.history_lengths_B, eos).log_probs_BSL[..., 0].exp()
    )
    found = shared(model, batch, allowed).log_probs_BSL[..., 0].exp()
    torch.testing.assert_close(found, free / (free + free_eos), atol=1e-12, rtol=1e-12)


def test_token_that_is_not_allowed_is_impossible_and_harmless():
    model = tiny_policy().model.double()
    batch = random_batch(constrained=True)
    allowed = batch.allowed_BSLV.clone()
    allowed[0, 0, 1] = False  # nothing at all is allowed
    allowed[1, 2, 2, batch.candidates_BKL[1, 1, 2]] = False
    scores = shared(model, batch, allowed)
    impossible = torch.isinf(scores.log_probs_BSL)
    assert impossible.nonzero().tolist() == [[0, 0, 1], [1, 2, 2]]
    assert torch.isfinite(scores.entropy_BSL).all()
    found = gradients(
        model, scores.log_probs_BSL.masked_fill(impossible, 0.0).sum() + scores.log_probs_BSL[1, 2, 2]
    )
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_entropy_of_a_uniform_policy():
    model = tiny_policy().model.double()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    scores = shared(model, random_batch())
    torch.testing.assert_close(scores.entropy_BSL, torch.full((4, 5, 3), math.log(15), dtype=torch.float64))
    torch.testing.assert_close(
        scores.log_probs_BSL, torch.full((4, 5, 3), -math.log(15), dtype=torch.float64)
    )
    assert not scores.entropy_BSL.requires_grad


def test_half_precision_logits_are_normalised_in_float32():
    batch = random_batch()
    scores = shared(tiny_policy().model.bfloat16(), batch)
    assert scores.log_probs_BSL.dtype == torch.float32
    torch.testing.assert_close(
        scores.log_probs_BSL, shared(tiny_policy().model, batch).log_probs_BSL, atol=0.05, rtol=0
    )


def test_scorer_is_the_function_as_a_module():
    policy, batch = tiny_policy(), random_batch()
    scorer, decoding = BranchScorer(policy.model), Decoding(candidates=1, temperature=0.5)
    found = scorer(batch.history_BT, batch.history_lengths_B, branches_of(batch), None, decoding)
    assert torch.equal(found.log_probs_BSL, shared(policy.model, batch, None, decoding).log_probs_BSL)
    assert {id(p) for p in scorer.parameters()} == {id(p) for p in policy.model.parameters()}


def test_a_prompt_does_not_see_the_others():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    together = shared(model, batch).log_probs_BSL
    lengths_B, branches_BSL = batch.history_lengths_B, branches_of(batch)
    for prompt in range(4):
        one = slice(prompt, prompt + 1)
        alone = branch_log_probs(
            model, batch.history_BT[one], lengths_B[one], branches_BSL[one]
        ).log_probs_BSL
        torch.testing.assert_close(alone, together[one], atol=1e-12, rtol=1e-12)


def test_the_model_answers_plain_calls_as_before():
    model, batch = tiny_policy().model, random_batch()
    before = model(batch.history_BT).logits
    shared(model, batch)
    assert torch.equal(model(batch.history_BT).logits, before)
    with pytest.raises(IndexError):
        shared(model, random_batch(target_BL=torch.full((4, 3), 99)))
    assert torch.equal(model(batch.history_BT).logits, before)


def test_recomputed_activations_are_refused():
    model = tiny_policy().model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="turn checkpointing off"):
        shared(model, random_batch())
    with torch.no_grad():
        assert torch.isfinite(shared(model, random_batch()).log_probs_BSL).all()


def test_dropout_inside_attention_takes_the_masked_path_and_drops():
    model, batch = tiny_policy().model, random_batch()
    expected = shared(model, batch).log_probs_BSL
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.testing.assert_close(shared(model, batch).log_probs_BSL, expected)
    model.train()
    assert (shared(model, batch).log_probs_BSL - expected).abs().max() > 1e-4
