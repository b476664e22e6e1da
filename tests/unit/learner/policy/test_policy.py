import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    PreTrainedTokenizerFast,
)

from sluice.catalog.errors import DataError, PolicyError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import (
    adapt_policy,
    build_policy,
    load_policy,
    mark_catalogue,
    save_policy,
)
from sluice.learner.settings import PolicySettings
from tests.unit.learner.learner_cases import tiny_llama, tiny_policy


@pytest.fixture
def base(tmp_path):
    """A foreign Llama with 41 tokens and 48 embeddings, no BOS and no PAD."""
    directory = tmp_path / "base"
    tiny_llama(vocab_size=48).save_pretrained(directory)
    words = {f"w{index}": index for index in range(40)} | {"</s>": 40}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="</s>"
    )
    tokenizer.save_pretrained(directory)
    return directory


def test_fresh_policy_has_its_layout_and_sizes():
    policy = tiny_policy()
    assert policy.layout == TokenLayout(
        level_sizes=(4, 3, 5), level_offsets=(3, 7, 10), pad=0, bos=1, eos=2, vocab_size=15
    )
    config = policy.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (
        16,
        2,
        2,
        8,
    )
    assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (24, 64, 15)
    assert policy.model.get_input_embeddings().weight is policy.model.get_output_embeddings().weight
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}


def test_rope_theta_is_the_base_of_the_wavelengths_before_and_after_saving(tmp_path):
    settings = PolicySettings(hidden_size=16, layers=1, heads=2, feed_forward_size=24, rope_theta=256.0)
    policy = build_policy(settings, (4, 3), max_positions=16, seed=0)
    save_policy(policy, tmp_path / "policy")
    for one in (policy, load_policy(tmp_path / "policy")):
        frequencies = one.model.model.rotary_emb.inv_freq
        assert frequencies == pytest.approx([1.0, 0.25, 0.0625, 0.015625])  # 256 ** (-2i / 8)


def test_seed_decides_the_weights_and_leaves_the_global_rng_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second, other = (tiny_policy(seed).model.model.embed_tokens.weight for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_tokenizer_reads_semantic_ids():
    tokenizer = tiny_policy().tokenizer
    assert tokenizer("<bos><a_3><b_0> <c_4><eos>")["input_ids"] == [1, 6, 7, 14, 2]
    assert tokenizer.convert_ids_to_tokens([0, 3, 9, 10]) == ["<pad>", "<a_0>", "<b_2>", "<c_0>"]


def test_saved_policy_comes_back_and_is_a_plain_directory(tmp_path):
    policy = tiny_policy()
    save_policy(policy, tmp_path / "deep" / "policy")
    again = load_policy(tmp_path / "deep" / "policy")
    assert again.layout == policy.layout
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in policy.model.state_dict().items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "policy")
    tokens = torch.tensor([[1, 3, 7, 10]])
    torch.testing.assert_close(plain(tokens).logits, policy.model(tokens).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "deep" / "policy").eos_token_id == 2
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["policy"]


def test_saving_replaces_the_policy_that_is_there(tmp_path):
    save_policy(tiny_policy(0), tmp_path / "policy")
    (tmp_path / "policy" / "stale-file").touch()
    save_policy(tiny_policy(1), tmp_path / "policy")
    assert not (tmp_path / "policy" / "stale-file").exists()
    weight = load_policy(tmp_path / "policy").model.model.embed_tokens.weight
    assert torch.equal(weight, tiny_policy(1).model.model.embed_tokens.weight)


def test_failed_save_leaves_the_old_policy(tmp_path, monkeypatch):
    save_policy(tiny_policy(0), tmp_path / "policy")
    broken = tiny_policy(1)

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(broken.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_policy(broken, tmp_path / "policy")
    weight = load_policy(tmp_path / "policy").model.model.embed_tokens.weight
    assert torch.equal(weight, tiny_policy(0).model.model.embed_tokens.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_adapted_policy_adds_one_token_per_code_and_keeps_the_old_ones(base, tmp_path):
    old = AutoModelForCausalLM.from_pretrained(base)
    policy = adapt_policy(base, (4, 3, 5))
    # 41 tokens + 12 codes = 53 > 48 embeddings
    assert policy.layout == TokenLayout(
        level_sizes=(4, 3, 5), level_offsets=(41, 45, 48), pad=40, bos=40, eos=40, vocab_size=53
    )
    for part in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, part)().weight, getattr(policy.model, part)().weight
        assert after.shape == (53, 16)
        assert torch.equal(before[:41], after[:41])
        fresh = after[41:]
        assert 0.3 * before.std() < fresh.std() < 3 * before.std()
        assert len(torch.unique(fresh, dim=0)) == 12
    save_policy(policy, tmp_path / "adapted")
    assert load_policy(tmp_path / "adapted").layout == policy.layout
    assert adapt_policy(tmp_path / "adapted", (4, 3, 5)).layout == policy.layout


def test_adapting_uses_spare_embeddings_before_growing(base):
    policy = adapt_policy(base, (2, 3))
    assert policy.layout.vocab_size == 48 and policy.layout.level_offsets == (41, 43)
    original = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert not torch.equal(policy.model.get_input_embeddings().weight[41:46], original[41:46])
    assert torch.equal(policy.model.get_input_embeddings().weight[46:], original[46:])


def test_adapting_twice_to_other_sizes_is_refused(base, tmp_path):
    save_policy(adapt_policy(base, (4, 3, 5)), tmp_path / "adapted")
    with pytest.raises(PolicyError, match=r"level sizes \[4, 3, 5\], not \[4, 3, 6\]"):
        adapt_policy(tmp_path / "adapted", (4, 3, 6))


def test_base_without_semantic_ids_is_no_policy(base):
    with pytest.raises(PolicyError, match=r"sluice_level_sizes None.*policy\.base"):
        load_policy(base)


def test_config_that_does_not_fit_the_tokenizer_is_refused(tmp_path):
    save_policy(tiny_policy(), tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sluice_level_sizes": [4, 3, 6]}))
    with pytest.raises(PolicyError, match=r"gives <c_5> the id None"):
        load_policy(tmp_path / "policy")


def test_tokenizer_larger_than_the_model_is_refused(tmp_path):
    policy = tiny_policy()
    wide = build_policy(
        PolicySettings(hidden_size=16, layers=2, heads=2, feed_forward_size=24),
        (4, 3, 6),
        max_positions=64,
        seed=0,
    )
    save_policy(policy, tmp_path / "policy")
    wide.tokenizer.save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sluice_level_sizes": [4, 3, 6]}))
    with pytest.raises(PolicyError, match=r"token id 15, but the model has 15 embeddings"):
        load_policy(tmp_path / "policy")


def test_missing_directory_is_a_policy_error(tmp_path):
    with pytest.raises(PolicyError, match=r"has no config\.json"):
        load_policy(tmp_path / "nowhere")


def test_architecture_with_scaled_logits_is_refused(base, tmp_path):
    config = CohereConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        logit_scale=0.1,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    CohereForCausalLM(config).save_pretrained(tmp_path / "cohere")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "cohere")
    with pytest.raises(PolicyError, match=r"CohereForCausalLM .* nats off"):
        adapt_policy(tmp_path / "cohere", (4, 3, 5))


def test_vocabulary_lays_codes_out():
    layout = TokenLayout.fresh((4, 3, 5))
    vocabulary = Vocabulary.of(np.array([[0, 0, 0], [3, 2, 4]], dtype=np.int32), layout)
    assert vocabulary.item_tokens.tolist() == [[3, 7, 10], [6, 9, 14]]
    assert vocabulary.item_tokens.dtype == np.int64
    assert vocabulary.trie.lookup(np.array([[6, 9, 14], [3, 7, 10], [3, 7, 11]])).tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        ([[0, 0]], PolicyError, r"shape \[1, 2\], but the policy has 3 levels"),
        (
            [[0, 0, 0], [0, 3, 0]],
            PolicyError,
            r"item row 1 has code 3 at level 1, but the policy has codes 0\.\.2",
        ),
        ([[0, -1, 0]], PolicyError, r"code -1 at level 1"),
        ([[0, 1, 0], [0, 1, 0]], DataError, r"rows 0 and 1 have the same semantic ID"),
    ],
)
def test_vocabulary_refuses_foreign_codes(codes, error, message):
    with pytest.raises(error, match=message):
        Vocabulary.of(np.array(codes), TokenLayout.fresh((4, 3, 5)))


def test_a_policy_is_refused_for_another_catalogue_and_one_without_a_mark_is_not(tmp_path):
    policy = tiny_policy()
    save_policy(policy, tmp_path / "unmarked")
    mark_catalogue(policy, "aa11")
    save_policy(policy, tmp_path / "marked")
    for name, catalogue in (("unmarked", "bb22"), ("unmarked", None), ("marked", "aa11"), ("marked", None)):
        assert load_policy(tmp_path / name, catalogue).layout == policy.layout
    with pytest.raises(PolicyError, match=r"made for another catalogue \(aa11\) than .* \(bb22\)"):
        load_policy(tmp_path / "marked", "bb22")
