"""The base of a policy, looked at without being loaded."""

import json

import pytest

from sluice.learner.policy.policy import LEVEL_SIZES_KEY, build_policy, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.config import RunConfig
from sluice.services.preflight import base_policy
from sluice.services.preflight.base_policy import check_base, check_engine


@pytest.fixture
def base(tmp_path):
    sizes = PolicySettings(hidden_size=64, layers=1, heads=2, feed_forward_size=64)
    save_policy(build_policy(sizes, (32, 32, 32, 2), 64, 0), tmp_path / "base")
    return tmp_path / "base"


def told(base, **parts):
    config = RunConfig.model_validate({"name": "t", "policy": {"base": str(base)}, **parts})
    return [(finding.field, finding.value) for finding in check_base(config)]


def change(base, **entries):
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_good_base_and_no_base_have_nothing_against_them(base):
    assert told(base) == []
    assert list(check_base(RunConfig(name="t"))) == []


def test_a_directory_that_is_not_there_is_told(tmp_path):
    assert told(tmp_path / "gone") == [("policy.base", f"{tmp_path / 'gone'}: there is no such directory")]


def test_everything_that_is_wrong_with_the_files_is_told(base):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (base / "tokenizer.json").write_text("{")
    values = [value for _, value in told(base)]
    assert len(values) == 2
    assert "model.safetensors: " in values[0] and "tokenizer.json: " in values[1]


def test_a_config_that_is_no_mapping_is_told(base):
    (base / "config.json").write_text("[1]")
    assert "config.json" in told(base)[0][1]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_is_told(base, name):
    (base / name).unlink()
    ((_, value),) = told(base)
    assert name in value


def test_a_base_without_a_tokenizer_is_told(base):
    for path in base.glob("tokenizer*"):
        path.unlink()
    assert told(base) == [("policy.base", f"{base}: it has no tokenizer")]


def test_every_file_of_an_index_is_opened(base):
    (base / "model.safetensors").rename(base / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    ((_, value),) = told(base)
    assert "two.safetensors" in value
    (base / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json" in told(base)[0][1]


def test_heads_that_the_engine_does_not_take_are_told(base):
    change(base, head_dim=48)
    assert told(base) == [("policy.base", "attention heads of size 48")]
    assert told(base, rollout={"gpus": 1}) == []
    assert told(base, rollout={"engine": {"type": "tree"}}) == []
    for size in (24, 40):
        change(base, head_dim=size)
        assert told(base, rollout={"gpus": 1}) == [("policy.base", f"attention heads of size {size}")]


def test_a_head_size_that_is_not_written_down_is_computed(base):
    change(base, head_dim=None, hidden_size=96, num_attention_heads=2)
    assert told(base) == [("policy.base", "attention heads of size 48")]


def test_a_base_that_was_adapted_to_other_codes_is_told(base):
    ((_, value),) = told(base, data={"semantic_ids": {"level_sizes": [64, 32, 32]}})
    assert value == f"{base}: it has tokens for codes of [32, 32, 32, 2]"


def test_the_key_of_the_level_sizes_is_the_policys():
    assert base_policy._LEVEL_SIZES == LEVEL_SIZES_KEY


def test_an_engine_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(base_policy, "find_spec", lambda name: None)
    tree = RunConfig.model_validate({"name": "t", "rollout": {"engine": {"type": "tree"}}})
    assert list(check_engine(tree)) == []
    assert [finding.field for finding in check_engine(RunConfig(name="t"))] == ["rollout.engine.type"]
