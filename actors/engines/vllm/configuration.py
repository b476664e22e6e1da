"""How a vLLM engine is set up: the environment of its process and the sizes derived from the workload. No
vLLM here.

vLLM reads much of its configuration from the environment while it is imported, so `engine_environment` has to
be in force before that: a Ray actor gets it as `runtime_env={"env_vars": engine_environment(settings)}`.
"""

import os
from dataclasses import dataclass

from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.errors import ConfigError

_CPU_BLOCK = 32
_GPU_BLOCK = 16
_MAX_SEQUENCES = 1024
_CPU_CACHE_BYTES = 4 * 2**30  # at most
_GPU_CACHE_SHARE = 0.5  # of the GPU's memory, at most
_STEPS_REMEMBERED = {
    "cpu": 2,
    "gpu": 12,
}  # times what the prompts in flight fill, for prompts that extend earlier ones
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "auto": 4}


def engine_environment(settings: VllmEngineSettings) -> dict[str, str]:
    """The environment variables of a process that hosts one vLLM engine."""
    return {
        # The engine runs in the actor's own process: it starts twice as fast and weights reach it without a
        # copy.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The trie mask is written against the logits-processor interface of the first model runner.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # An engine must not claim cores that other actors of the node count on.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.threads),
        # A float32 engine computes in float32: the attention of GPU engines would round to ten bits (TF32).
        "TRITON_F32_DEFAULT": "ieee",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }


def check_environment(settings: VllmEngineSettings) -> None:
    """Refuse to start an engine in a process whose environment would give it another configuration.

    Raises:
        ConfigError: a variable of `engine_environment` is not in force, or one that overrides our settings
            is.
    """
    for name, value in engine_environment(settings).items():
        if name.startswith(("VLLM_", "TRITON_")) and os.environ.get(name) != value:
            raise ConfigError(
                f"environment variable {name} is {os.environ.get(name)!r} where the vLLM engine needs "
                f"{value!r}; start its process with the variables of "
                "sluice.actors.engines.vllm.configuration.engine_environment"
            )
    if os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        raise ConfigError(
            f"environment variable VLLM_CPU_KVCACHE_SPACE={os.environ['VLLM_CPU_KVCACHE_SPACE']} would "
            f"override the engine's settings; unset it and set rollout.engine.kv_cache_gib instead"
        )


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the sizes depend on in a policy."""

    layers: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True, kw_only=True)
class EngineSizes:
    """Every size of an engine, with where it comes from."""

    block_size: int  # tokens per cache block
    max_sequences: int  # sequences advanced in one step
    max_batched_tokens: int  # tokens computed in one step
    max_model_len: int  # tokens, prompt + item
    kv_cache_bytes: int | None  # None: vLLM takes `gpu_memory_share`
    derivation: dict[str, tuple[int | float | str, str]]  # name -> (value, reason)


def derive_sizes(
    settings: VllmEngineSettings,
    *,
    candidates: int,
    levels: int,
    max_prompt_tokens: int,
    prompts_in_flight: int,
    model: ModelShape,
    gpu_bytes: int | None,
) -> EngineSizes:
    """Fill in what the settings leave open. `gpu_bytes` is the memory of the engine's GPU, None without one.

    Raises:
        ConfigError: a given size cannot work.
    """
    cpu = gpu_bytes is None
    derivation: dict[str, tuple[int | float | str, str]] = {}

    def settle(name: str, given: int | None, derived: int, reason: str) -> int:
        derivation[name] = (derived, reason) if given is None else (given, "given in the settings")
        return derived if given is None else given

    max_model_len = settle(
        "max_model_len", None, max_prompt_tokens + levels, "longest prompt + one token per level"
    )
    block_size = settle(
        "block_size",
        settings.block_size,
        _CPU_BLOCK if cpu else _GPU_BLOCK,
        "the smallest the attention kernels take: the K candidates of a prompt share its full blocks only",
    )
    sequences = settle(
        "max_sequences",
        settings.max_sequences,
        max(candidates, min(prompts_in_flight * candidates, _MAX_SEQUENCES)),
        f"{prompts_in_flight} prompts in flight x {candidates} sequences of each, at most {_MAX_SEQUENCES}",
    )
    batched_tokens = settle(
        "max_batched_tokens",
        settings.max_batched_tokens,
        max(max_model_len, sequences, _batch_of_tokens(cpu)),
        "a whole prompt, one token of every sequence, and enough to keep a step busy",
    )
    if cpu:
        _check_cpu_sizes(block_size, batched_tokens, max_model_len)
    own = -(-(block_size - 1 + levels) // block_size)  # blocks that a candidate cannot share
    blocks = 1 + prompts_in_flight * (-(-max_prompt_tokens // block_size) + candidates * own)
    kv_cache_bytes, reasons = _size_cache(settings, blocks, block_size, model, gpu_bytes)
    return EngineSizes(
        block_size=block_size,
        max_sequences=sequences,
        max_batched_tokens=batched_tokens,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_bytes,
        derivation=derivation | reasons,
    )


def _check_cpu_sizes(block_size: int, batched_tokens: int, max_model_len: int) -> None:
    if block_size % _CPU_BLOCK:
        raise ConfigError(
            f"rollout.engine.block_size is {block_size}; the CPU attention kernel takes multiples of "
            f"{_CPU_BLOCK} only"
        )
    if batched_tokens < max_model_len:
        raise ConfigError(
            f"rollout.engine.max_batched_tokens is {batched_tokens}, less than prompt + item "
            f"({max_model_len} tokens); the CPU engine prefills a prompt in one piece, so raise it or "
            "shorten the history"
        )


def _size_cache(
    settings: VllmEngineSettings, blocks: int, block_size: int, model: ModelShape, gpu_bytes: int | None
) -> tuple[int | None, dict[str, tuple[int | float | str, str]]]:
    """Bytes of the cache, None where vLLM takes a share of its GPU; and where the sizes of the cache come
    from.
    """
    share = settings.gpu_memory_share
    if share is not None and gpu_bytes is not None:
        return None, {"gpu_memory_share": (share, "given in the settings")}
    kv_cache_bytes, reason = _cache(settings, blocks, block_size, model, gpu_bytes)
    derivation: dict[str, tuple[int | float | str, str]] = {"kv_cache_bytes": (kv_cache_bytes, reason)}
    if share is not None:
        derivation["gpu_memory_share"] = (share, "without effect, since the engine has no GPU")
    return kv_cache_bytes, derivation


def _batch_of_tokens(cpu: bool) -> int:
    return 4096 if cpu else 8192


def _cache(
    settings: VllmEngineSettings, blocks: int, block_size: int, model: ModelShape, gpu_bytes: int | None
) -> tuple[int, str]:
    """Bytes of the cache on each device, and why; `blocks` are what the prompts in flight fill."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * 2**30), "given in the settings"
    heads = -(-model.kv_heads // settings.tensor_parallel)
    block_bytes = 2 * model.layers * heads * model.head_size * block_size * _DTYPE_BYTES[settings.dtype]
    times = _STEPS_REMEMBERED["cpu" if gpu_bytes is None else "gpu"]
    needed = times * blocks * block_bytes
    limit = _CPU_CACHE_BYTES if gpu_bytes is None else int(_GPU_CACHE_SHARE * gpu_bytes)
    reason = f"{times} times the {blocks} blocks of {block_bytes} bytes that the prompts in flight fill"
    return (needed, reason) if needed <= limit else (limit, f"{reason}, cut to {limit / 2**30:.1f} GiB")
