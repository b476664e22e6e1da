"""Starting vLLM on a policy directory: what must hold of the policy, and the arguments the engine is started
with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats
from vllm.v1.request import Request

from sluice.actors.engines.vllm.configuration import EngineSizes, ModelShape
from sluice.actors.engines.vllm.trie import TRIE_PATH
from sluice.actors.engines.vllm.weights import BACKEND
from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.errors import ConfigError, PolicyError
from sluice.catalog.tokens import TokenLayout

_LEAST_FREE = 0.01


class PrefixCacheCounter(StatLoggerBase):
    """Sums up what vLLM reports of its prefix cache."""

    def __init__(self) -> None:
        self.queried_tokens = 0  # prompt tokens looked up, of requests that were not preempted
        self.hit_tokens = 0  # of these, tokens found

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM after every step."""
        if scheduler_stats is not None and scheduler_stats.prefix_cache_stats is not None:
            self.queried_tokens += scheduler_stats.prefix_cache_stats.queries
            self.hit_tokens += scheduler_stats.prefix_cache_stats.hits

    def log_engine_initialized(self) -> None:
        """Nothing to log."""


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """What an engine needs to know of a policy directory."""

    directory: Path
    model: ModelShape
    parameters: dict[str, tuple[int, ...]]  # name -> shape, as in its safetensors files
    tied: bool  # the output layer shares the embedding's weights


def read_policy_facts(directory: Path, layout: TokenLayout, max_prompt_tokens: int) -> PolicyFacts:
    """Read what matters of a Hugging Face model directory.

    Raises:
        PolicyError: there is no policy, or it does not fit the catalogue's tokens or the engine's kernels.
        ConfigError: prompts are longer than it can read.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not (directory / "config.json").is_file() or not files:
        raise PolicyError(
            f"{directory} holds no policy (config.json and *.safetensors); give a Hugging Face model "
            f"directory"
        )
    config = AutoConfig.from_pretrained(directory).get_text_config()
    if config.vocab_size != layout.vocab_size:
        raise PolicyError(
            f"policy {directory} has {config.vocab_size} tokens, the catalogue's layout {layout.vocab_size}; "
            f"they must be equal, so use the policy that was made for this catalogue"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < max_prompt_tokens + layout.levels:
        raise ConfigError(
            f"policy {directory} has {positions} positions; prompt + item take "
            f"{max_prompt_tokens + layout.levels}, so shorten the history"
        )
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if current_platform.is_cpu() and head_size not in CPUAttentionBackend.get_supported_head_sizes():
        raise PolicyError(
            f"policy {directory} has attention heads of size {head_size}; vLLM's CPU kernels take "
            f"{CPUAttentionBackend.get_supported_head_sizes()}, so choose hidden_size / heads among them"
        )
    parameters: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="np") as tensors:
            parameters |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return PolicyFacts(
        directory=directory,
        model=ModelShape(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=head_size,
        ),
        parameters=parameters,
        tied=bool(config.tie_word_embeddings),
    )


def start_llm(
    policy: PolicyFacts,
    settings: VllmEngineSettings,
    sizes: EngineSizes,
    seed: int,
    trie_name: str,
    counter: PrefixCacheCounter | None,
) -> LLMEngine:
    """Start vLLM in this process, ready for weight updates.

    Without a `counter` vLLM keeps no statistics, which on requests of a few tokens are a good part of its own
    work.
    """
    compile_graphs(settings)
    arguments = EngineArgs(
        **plain_arguments(policy.directory, settings, sizes, seed),
        logits_processors=["sluice.actors.engines.vllm.trie:TrieLogitsProcessor"],
        additional_config={TRIE_PATH: trie_name},
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls="sluice.actors.engines.vllm.weights.WorkerExtension",
    )
    llm = LLMEngine.from_vllm_config(
        arguments.create_engine_config(),
        stat_loggers=[lambda *_: counter] if counter else None,
        disable_log_stats=counter is None,
    )
    client = llm.engine_core
    assert isinstance(client, InprocClient), (
        "`configuration.engine_environment` keeps the core in this process"
    )
    hasher = client.engine_core.request_block_hasher
    assert hasher is not None, "`plain_arguments` enables prefix caching, for which vLLM hashes blocks"
    client.engine_core.request_block_hasher = CachedBlockHasher(hasher)
    llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    return llm


class CachedBlockHasher:
    """Hashes of a prompt's cache blocks, computed once for all its candidates.

    vLLM makes each of n candidates a request of its own, one after another with the same list of tokens, and
    hashes that anew for each: 0.12 ms per group of 16 with 160 tokens, 1% of what it takes on a CPU.
    """

    def __init__(self, hasher: Callable[[Request], list[BlockHash]]) -> None:
        """`hasher` is vLLM's own. What it hashes besides tokens (adapters, images) our requests have none
        of.
        """
        self._hasher = hasher
        self._tokens: list[int] | None = None
        self._hashes: list[BlockHash] = []

    def __call__(self, request: Request) -> list[BlockHash]:
        """Hashes of the full blocks that `request` has had none of yet."""
        if request.num_tokens > request.num_prompt_tokens:  # it goes on: these tokens are its own
            return self._hasher(request)
        if request.prompt_token_ids is not self._tokens:
            self._tokens, self._hashes = request.prompt_token_ids, self._hasher(request)
        return self._hashes  # which the request copies


def gpu_bytes() -> int | None:
    """Memory of the GPU that an engine of this process computes on, None for vLLM's CPU build.

    Raises:
        ConfigError: vLLM's build is for GPUs, and this process has none.
    """
    if current_platform.is_cpu():
        return None
    if not torch.cuda.is_available():
        raise ConfigError(
            "this vLLM is built for GPUs and the engine's process has none: set rollout.gpus to 1 (or to a "
            "share of one GPU), or install requirements/cpu.lock"
        )
    return current_platform.get_device_total_memory()


def compile_graphs(settings: VllmEngineSettings) -> None:
    """Let torch compile in this process, or not at all: without graphs all that is left to compile is one
    reduction in vLLM's sampler, at 15 s a start.
    """
    torch.compiler.set_stance("force_eager" if settings.enforce_eager else "default")


def plain_arguments(
    policy: Path, settings: VllmEngineSettings, sizes: EngineSizes, seed: int
) -> dict[str, Any]:
    """The arguments that have nothing to do with tries and new weights; `vllm.LLM` takes them too."""
    return {
        "model": str(policy),
        "skip_tokenizer_init": True,  # prompts and answers are token ids
        "generation_config": "vllm",  # none of the policy's own sampling defaults
        "dtype": settings.dtype,
        "seed": seed,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": settings.enforce_eager,
        "use_tqdm_on_load": False,
        "block_size": sizes.block_size,
        "enable_prefix_caching": True,
        "max_model_len": sizes.max_model_len,
        "max_num_seqs": sizes.max_sequences,
        "max_num_batched_tokens": sizes.max_batched_tokens,
        # The sampler rewinds the generator of a half-prefilled seeded request, which CPU generators cannot
        # do.
        "enable_chunked_prefill": not current_platform.is_cpu(),
        # No step may be under way while weights are swapped; and the trie needs each token before the next
        # step.
        "async_scheduling": False,
        # With the bytes of the cache given this is but the share that has to be free at the start.
        "gpu_memory_utilization": settings.gpu_memory_share or _LEAST_FREE,
        "kv_cache_memory_bytes": sizes.kv_cache_bytes,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
    }
