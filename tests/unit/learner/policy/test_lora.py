"""LoRA: the start is the base, the gradients are the chain rule's, and what others get is the merged plain
policy.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sluice.catalog.errors import PolicyError
from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.policy.lora import add_adapters, merge_adapters, plain_parameters
from sluice.learner.policy.packed_weights import pack_one_by_one
from sluice.learner.policy.policy import Policy, load_policy, save_policy
from sluice.learner.scoring.shared_prefix import BranchScorer
from sluice.learner.settings import EmaReference, LearnerSettings, LoraSettings
from sluice.learner.training.checkpoint import read_rank, write_rank
from sluice.learner.training.step import LearnerStep
from tests.unit.learner.learner_cases import in_double, random_batch, tiny_llama, tiny_policy

LORA = LoraSettings(rank=2, alpha=6.0)  # scale 3
SETTINGS = LearnerSettings(warmup_steps=0, lr=1e-2, max_grad_norm=1e9, lora=LORA)
TOKENS = range(3, 15)
LAYOUT = tiny_policy().layout


def adapted(model, settings=LORA, seed=0):
    add_adapters(model, settings, LAYOUT, seed)
    return model


def disturbed(model):
    """Every trained parameter away from its start, as after some steps."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1
                )
    return model


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def scores_of(model, batch=None):
    batch = batch or random_batch()
    branches_BSL = torch.cat([batch.target_BL[:, None], batch.candidates_BKL], dim=1)
    return BranchScorer(model)(batch.history_BT, batch.history_lengths_B, branches_BSL).log_probs_BSL


def plain_of(model, like):
    """`like` with the weights that `model` amounts to."""
    result = copy.deepcopy(like)
    result.load_state_dict(dict(plain_parameters(model)), strict=False)
    return result


@pytest.mark.parametrize("make", [lambda: tiny_policy().model, tiny_llama])
def test_the_start_is_the_base_to_the_bit_and_training_leaves_its_weights_alone(make):
    base = make()
    model = adapted(copy.deepcopy(base))
    assert torch.equal(scores_of(model), scores_of(base))
    for name, value in plain_parameters(model):
        assert torch.equal(value, base.state_dict()[name]), name
    learner = LearnerStep(model, objective=NllLoss(), settings=SETTINGS)
    for _ in range(2):
        learner.update(random_batch())
    assert (scores_of(model) - scores_of(base)).abs().max() > 1e-3
    frozen = {
        name.replace(".token_adapter", "").replace(".base_layer", ""): p
        for name, p in model.named_parameters()
    }
    assert all(torch.equal(frozen[name], value) for name, value in base.named_parameters())


def test_what_is_trained():
    names = trained(adapted(tiny_policy().model, LoraSettings(rank=2, targets=("q_proj", "down_proj"))))
    layers = [
        f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
    ]
    adapters = {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}
    assert names == adapters | {"model.embed_tokens.token_adapter.trainable_tokens_delta.default"}
    everywhere = trained(adapted(tiny_policy().model, LoraSettings(train_tokens=False)))
    assert len(everywhere) == 2 * 7 * 2 and not any("token" in name or "head" in name for name in everywhere)
    untied = trained(adapted(tiny_llama()))
    assert sum("trainable_tokens_delta" in name for name in untied) == 2


@pytest.mark.parametrize("make", [lambda: tiny_policy().model, tiny_llama])
def test_the_policy_of_the_merged_weights_scores_as_the_adapted_one(make):
    base = in_double(make())
    model = disturbed(adapted(copy.deepcopy(base)))
    before = copy.deepcopy(model.state_dict())
    plain = plain_of(model, base)
    found = dict(plain_parameters(model))
    assert list(found) == [name for name, _ in base.named_parameters()]
    torch.testing.assert_close(scores_of(plain), scores_of(model), atol=1e-10, rtol=0)
    assert (scores_of(base) - scores_of(model)).abs().max() > 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rows = (
        found["model.embed_tokens.weight"] != dict(base.named_parameters())["model.embed_tokens.weight"]
    ).any(dim=1)
    assert rows.nonzero().flatten().tolist() == list(TOKENS)


def test_merging_equals_pefts_own():
    base = tiny_llama()
    model = disturbed(adapted(copy.deepcopy(base)))
    rows = {"embed_tokens": list(TOKENS), "lm_head": list(TOKENS)}
    config = LoraConfig(r=2, lora_alpha=6.0, target_modules="all-linear", trainable_token_indices=rows)
    theirs = get_peft_model(copy.deepcopy(base), config)
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(ours[name.removeprefix("base_model.model.")])
    expected = dict(theirs.merge_and_unload().named_parameters())
    found = dict(plain_parameters(model))
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_merging_a_layer_by_hand():
    layer = adapted(tiny_policy().model).model.layers[0].self_attn.q_proj
    weight = torch.zeros(16, 16)
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()
        layer.lora_B["default"].weight.zero_()
        layer.lora_A["default"].weight[1, 4] = 5.0
        layer.lora_B["default"].weight[7, 1] = 2.0
    weight[7, 4] = 1.0
    found = merge_adapters(layer, weight)
    assert found[7, 4] == 1 + 3 * 2 * 5 and found.count_nonzero() == 1


def test_gradients_are_the_chain_rule_of_the_dense_gradient():
    """dL/dA = s B' G and dL/dB = s G A' for the dense gradient G at W + s B A; the rows' is that of the
    embedding.
    """
    base = in_double(tiny_policy().model)
    model = disturbed(adapted(copy.deepcopy(base)))
    dense = plain_of(model, base)
    for part in (model, dense):
        scores_of(part).sum().backward()
    for layer in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.gate_proj"):
        gradient = dense.get_submodule(layer).weight.grad
        a, b = (model.get_submodule(layer).get_submodule(f"lora_{side}.default").weight for side in "AB")
        torch.testing.assert_close(a.grad, 3 * b.T @ gradient, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(b.grad, 3 * gradient @ a.T, atol=1e-8, rtol=1e-8)
        assert a.grad.abs().max() > 1e-3
    rows = model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    torch.testing.assert_close(
        rows.grad, dense.get_input_embeddings().weight.grad[3:15], atol=1e-8, rtol=1e-8
    )


def test_biases_keep_their_names_and_values():
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=15, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, attn_implementation="sdpa", tie_word_embeddings=True,
        )
    )  # fmt: skip
    with torch.no_grad():
        base.model.layers[0].self_attn.q_proj.bias.normal_()
    found = dict(plain_parameters(adapted(copy.deepcopy(base))))
    assert set(found) == {name for name, _ in base.named_parameters()}
    assert torch.equal(
        found["model.layers.0.self_attn.q_proj.bias"], base.model.layers[0].self_attn.q_proj.bias
    )


def test_engines_and_checkpoints_get_the_plain_policy(tmp_path):
    start = tiny_policy()
    policy = Policy(
        model=disturbed(adapted(tiny_policy().model)), tokenizer=start.tokenizer, layout=start.layout
    )
    learner = LearnerStep(policy.model, objective=NllLoss(), settings=SETTINGS)
    assert not learner.in_policy_directory
    weights = learner.plain_weights()
    packed = pack_one_by_one(weights.shapes(), weights.tensors(), version=7)
    assert [(part.name, part.shape) for part in packed.manifest] == [
        (name, tuple(parameter.shape)) for name, parameter in start.model.named_parameters()
    ]
    save_policy(weights.policy(like=policy), tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy").model
    assert type(loaded) is type(AutoModelForCausalLM.from_pretrained(tmp_path / "policy"))
    for name, value in packed.tensors():
        assert torch.equal(dict(loaded.named_parameters())[name], value)
    torch.testing.assert_close(scores_of(loaded), scores_of(policy.model), atol=1e-5, rtol=0)


def learner_with_kl(settings, model=None):
    objective = GrpoLoss(GrpoSettings(kl_beta=0.1))
    return LearnerStep(
        model or adapted(in_double(tiny_policy().model)), objective=objective, settings=settings
    )


def test_the_reference_is_the_base_and_costs_the_adapters_alone():
    learner = learner_with_kl(SETTINGS)
    base = scores_of(in_double(tiny_policy().model))
    for seed in range(2):
        learner.update(random_batch(seed=seed))
    assert set(learner.reference.values) == trained(learner.model)
    found = learner._reference_log_probs([random_batch()])[0]
    torch.testing.assert_close(found, base, atol=1e-10, rtol=0)
    assert (scores_of(learner.model) - base).abs().max() > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_resuming_continues_as_if_nothing_had_happened(tmp_path, dropout):
    lora = LORA.model_copy(update={"dropout": dropout})
    settings = SETTINGS.model_copy(update={"lora": lora, "reference": EmaReference(decay=0.5)})
    names = ("loss", "kl", "grad_norm")
    torch.manual_seed(0)
    learner = learner_with_kl(settings, adapted(in_double(tiny_policy().model), lora))
    for seed in range(2):
        learner.update(random_batch(seed=seed))
    write_rank(tmp_path, 0, learner.state_dict())
    expected = [learner.update(random_batch(seed=seed)) for seed in range(2, 4)]
    torch.manual_seed(99)
    again = learner_with_kl(settings, adapted(in_double(tiny_policy().model), lora, seed=5))
    again.load_state_dict(read_rank(tmp_path, 0))
    found = [again.update(random_batch(seed=seed)) for seed in range(2, 4)]
    assert [[one[name] for name in names] for one in found] == [
        [one[name] for name in names] for one in expected
    ]


def test_the_adapters_dropout_acts_in_updates_alone_and_brings_no_other_with_it():
    losses = {}
    for dropout in (0.0, 0.5):
        lora = LORA.model_copy(update={"dropout": dropout})
        model = disturbed(adapted(tiny_policy().model, lora))
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        settings = SETTINGS.model_copy(update={"lora": lora, "lr": 1e-30})
        learner = LearnerStep(model, objective=NllLoss(), settings=settings)
        losses[dropout] = {learner.update(random_batch())["loss"] for _ in range(3)}
        assert torch.equal(scores_of(model), scores_of(model))
    assert len(losses[0.0]) == 1 and len(losses[0.5]) == 3


def test_the_adapters_depend_on_the_seed_alone():
    def first(seed, noise):
        torch.manual_seed(noise)
        model = adapted(tiny_policy().model, seed=seed)
        return model.model.layers[0].self_attn.q_proj.lora_A["default"].weight

    assert torch.equal(first(0, 1), first(0, 2)) and not torch.equal(first(0, 1), first(1, 1))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "query"), r"no linear layer named query; it has .*down_proj, .*q_proj"),
        (("lm_head",), "output embedding takes no adapter"),
    ],
)
def test_targets_that_cannot_be_adapted_are_named(targets, message):
    with pytest.raises(PolicyError, match=message):
        adapted(tiny_policy().model, LoraSettings(targets=targets))
