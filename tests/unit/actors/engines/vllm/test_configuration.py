"""Sizes and environment of a vLLM engine, without vLLM."""

import pytest
from pydantic import ValidationError

from sluice.actors.engines.vllm.configuration import (
    ModelShape,
    check_environment,
    derive_sizes,
    engine_environment,
)
from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.errors import ConfigError

SHAPE = ModelShape(layers=4, kv_heads=4, head_size=32)


def sizes(gpu_bytes=None, candidates=16, levels=4, max_prompt_tokens=200, prompts_in_flight=32, **settings):
    return derive_sizes(
        VllmEngineSettings(**settings),
        candidates=candidates,
        levels=levels,
        max_prompt_tokens=max_prompt_tokens,
        prompts_in_flight=prompts_in_flight,
        model=SHAPE,
        gpu_bytes=gpu_bytes,
    )


def test_everything_is_derived_with_a_reason():
    derived = sizes()
    assert (derived.max_model_len, derived.block_size, derived.max_sequences) == (204, 32, 512)
    assert derived.max_batched_tokens == 4096
    # 7 blocks of 32 hold a prompt of 200; a candidate's own 31 + 4 tokens need 2. A block is 2 x 4 x 4 x 32 x
    # 32 x 4 B.
    assert derived.kv_cache_bytes == 2 * (1 + 32 * (7 + 16 * 2)) * 131072
    assert set(derived.derivation) == {
        "max_model_len",
        "block_size",
        "max_sequences",
        "max_batched_tokens",
        "kv_cache_bytes",
    }
    assert derived.derivation["max_sequences"] == (
        512,
        "32 prompts in flight x 16 sequences of each, at most 1024",
    )


def test_given_sizes_are_taken():
    derived = sizes(block_size=64, max_sequences=10, max_batched_tokens=300, kv_cache_gib=0.5)
    assert (derived.block_size, derived.max_sequences, derived.max_batched_tokens) == (64, 10, 300)
    assert derived.kv_cache_bytes == 2**29
    assert derived.derivation["block_size"] == (64, "given in the settings")


def test_limits():
    assert sizes(prompts_in_flight=1000).max_sequences == 1024
    assert sizes(prompts_in_flight=1000, max_prompt_tokens=2000).kv_cache_bytes == 4 * 2**30
    assert sizes(max_prompt_tokens=5000).max_batched_tokens == 5004
    assert sizes(prompts_in_flight=1, candidates=2000).max_sequences == 2000


def test_half_precision_halves_the_cache():
    assert sizes(dtype="bfloat16").kv_cache_bytes == sizes().kv_cache_bytes // 2


def test_a_gpu_engine_remembers_more():
    derived = sizes(gpu_bytes=80 * 2**30)
    assert (derived.block_size, derived.max_batched_tokens) == (16, 8192)
    # 13 blocks of 16 hold a prompt of 200; a candidate's own 15 + 4 tokens need 2
    assert derived.kv_cache_bytes == 12 * (1 + 32 * (13 + 16 * 2)) * 65536
    assert sizes(gpu_bytes=2**30).kv_cache_bytes == 2**29
    assert sizes(gpu_bytes=80 * 2**30, tensor_parallel=3).kv_cache_bytes == derived.kv_cache_bytes // 2


def test_a_gpu_engine_takes_a_share_of_the_memory_when_told_to():
    derived = sizes(gpu_bytes=80 * 2**30, gpu_memory_share=0.6)
    assert derived.kv_cache_bytes is None
    assert derived.derivation["gpu_memory_share"] == (0.6, "given in the settings")
    without = sizes(gpu_memory_share=0.6)
    assert without.kv_cache_bytes == sizes().kv_cache_bytes  # there is none to take a share of
    assert without.derivation["gpu_memory_share"] == (0.6, "without effect, since the engine has no GPU")
    assert sizes(gpu_bytes=80 * 2**30, kv_cache_gib=2).kv_cache_bytes == 2 * 2**30
    with pytest.raises(ValidationError, match="both say how large the cache is"):
        VllmEngineSettings(gpu_memory_share=0.6, kv_cache_gib=2)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(
        ConfigError, match="block_size is 48; the CPU attention kernel takes multiples of 32 only"
    ):
        sizes(block_size=48)
    with pytest.raises(
        ConfigError, match=r"max_batched_tokens is 128, less than prompt \+ item \(204 tokens\)"
    ):
        sizes(max_batched_tokens=128)
    assert sizes(gpu_bytes=2**30, block_size=16, max_batched_tokens=128).max_batched_tokens == 128


def test_the_environment_keeps_an_engine_to_its_threads():
    environment = engine_environment(VllmEngineSettings(threads=2))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["TRITON_F32_DEFAULT"] == "ieee"


def test_a_process_with_another_environment_is_refused(monkeypatch):
    settings = VllmEngineSettings()
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    for name, value in engine_environment(settings).items():
        monkeypatch.setenv(name, value)
    check_environment(settings)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    with pytest.raises(ConfigError, match="VLLM_CPU_KVCACHE_SPACE=4 would override"):
        check_environment(settings)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
    with pytest.raises(
        ConfigError, match="VLLM_ENABLE_V1_MULTIPROCESSING is None where the vLLM engine needs '0'"
    ):
        check_environment(settings)
