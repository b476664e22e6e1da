"""How a vLLM engine is set up: the environment of its process and the sizes derived from the workload. No vLLM here.

vLLM reads much of its configuration from the environment while it is imported, so `engine_environment` has to be in
force before that: a Ray actor gets it as `runtime_env={"env_vars": engine_environment(settings)}`.
"""

import os
from dataclasses import dataclass

from actors.settings import EngineSettings
from catalog.errors import ConfigError

_CPU_BLOCK = 32
_GPU_BLOCK = 16
_MAX_SEQUENCES = 1024
_MAX_KV_CACHE_GIB = 4.0
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "auto": 4}


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """The environment variables of a process that hosts one vLLM engine."""
    # Without graphs to compile, all that is left to the compiler is one reduction in the sampler, at 15 s a start.
    compiler = {"TORCHDYNAMO_DISABLE": "1"} if settings.enforce_eager else {}
    return compiler | {
        # The engine runs in the actor's own process: it starts twice as fast and weights reach it without a copy.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The trie mask is written against the logits-processor interface of the first model runner.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # An engine must not claim cores that other actors of the node count on.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }


def check_environment(settings: EngineSettings) -> None:
    """Refuse to start an engine in a process whose environment would give it another configuration.

    Raises:
        ConfigError: a variable of `engine_environment` is not in force, or one that overrides our settings is.
    """
    for name, value in engine_environment(settings).items():
        if name.startswith(("VLLM_", "TORCH")) and os.environ.get(name) != value:
            raise ConfigError(
                f"environment variable {name} is {os.environ.get(name)!r} where the vLLM engine needs {value!r}; start "
                "its process with the variables of actors.vllm_configuration.engine_environment"
            )
    if os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        raise ConfigError(
            f"environment variable VLLM_CPU_KVCACHE_SPACE={os.environ['VLLM_CPU_KVCACHE_SPACE']} would override the "
            "engine's settings; unset it and set rollout.engine.kv_cache_gib instead"
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
    kv_cache_bytes: int | None  # None: vLLM takes its share of the GPU's memory
    derivation: dict[str, tuple[int | float | str, str]]  # name -> (value, reason)


def derive_sizes(
    settings: EngineSettings,
    *,
    candidates: int,
    levels: int,
    max_prompt_tokens: int,
    prompts_in_flight: int,
    model: ModelShape,
    cpu: bool,
) -> EngineSizes:
    """Fill in the sizes that the settings leave open.

    Raises:
        ConfigError: a given size cannot work.
    """
    derivation: dict[str, tuple[int | float | str, str]] = {}

    def settle(name: str, given: int | None, derived: int, reason: str) -> int:
        derivation[name] = (derived, reason) if given is None else (given, "given in the settings")
        return derived if given is None else given

    max_model_len = settle("max_model_len", None, max_prompt_tokens + levels, "longest prompt + one token per level")
    block_size = settle(
        "block_size",
        settings.block_size,
        _CPU_BLOCK if cpu else _GPU_BLOCK,
        "the smallest the attention kernels take: the K candidates of a prompt share its full blocks only",
    )
    if cpu and block_size % _CPU_BLOCK:
        raise ConfigError(
            f"rollout.engine.block_size is {block_size}; the CPU attention kernel takes multiples of {_CPU_BLOCK} only"
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
    if cpu and batched_tokens < max_model_len:
        raise ConfigError(
            f"rollout.engine.max_batched_tokens is {batched_tokens}, less than prompt + item ({max_model_len} tokens); "
            "the CPU engine prefills a prompt in one piece, so raise it or shorten the history"
        )
    kv_cache_bytes = None
    if cpu:
        kv_cache_bytes, reason = _cpu_cache(
            settings, block_size, candidates, levels, max_prompt_tokens, prompts_in_flight, model
        )
        derivation["kv_cache_bytes"] = (kv_cache_bytes, reason)
    else:
        given = "gpu_memory_share" in settings.model_fields_set
        derivation["gpu_memory_share"] = (
            settings.gpu_memory_share,
            "given in the settings" if given else "the default of the settings",
        )
    return EngineSizes(
        block_size=block_size,
        max_sequences=sequences,
        max_batched_tokens=batched_tokens,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_bytes,
        derivation=derivation,
    )


def _batch_of_tokens(cpu: bool) -> int:
    return 4096 if cpu else 8192


def _cpu_cache(
    settings: EngineSettings,
    block_size: int,
    candidates: int,
    levels: int,
    max_prompt_tokens: int,
    prompts_in_flight: int,
    model: ModelShape,
) -> tuple[int, str]:
    """Bytes of the cache, and why. vLLM has no use for more: everything in flight already fits."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * 2**30), "given in the settings"
    own = -(-(block_size - 1 + levels) // block_size)  # blocks that a candidate cannot share
    blocks = 1 + prompts_in_flight * (-(-max_prompt_tokens // block_size) + candidates * own)
    block_bytes = 2 * model.layers * model.kv_heads * model.head_size * block_size * _DTYPE_BYTES[settings.dtype]
    needed = 2 * blocks * block_bytes
    limit = int(_MAX_KV_CACHE_GIB * 2**30)
    reason = f"twice the {blocks} blocks of {block_bytes} bytes that the prompts in flight fill"
    return (needed, reason) if needed <= limit else (limit, f"{reason}, cut to {_MAX_KV_CACHE_GIB} GiB")
