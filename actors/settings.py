"""Settings of the services around the learner: rollouts, ranker pool, queue, weight board. Imports no
torch.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sluice.catalog.settings import Settings


class DecodeSettings(Settings):
    """How the K candidates of a prompt are drawn; docs/rollouts.md compares the kinds.

    >>> DecodeSettings(kind="stochastic_beam", candidates=8, constrained=True).temperature
    1.0
    """

    # sample: K independent samples; beam: the K likeliest sequences; stochastic_beam: K distinct ones,
    # sampled without replacement, with the probability of each to be among them
    kind: Literal["sample", "beam", "stochastic_beam"] = "sample"
    candidates: int = Field(default=16, ge=2)  # K
    temperature: float = Field(default=1.0, ge=0.01, le=2)  # the range that vLLM takes
    top_p: float = Field(default=1.0, gt=0, le=1)
    constrained: bool = False  # mask every step to the catalogue's trie

    @model_validator(mode="after")
    def _beams_are_exact(self) -> "DecodeSettings":
        if self.kind == "beam" and (self.temperature != 1.0 or self.top_p != 1.0):
            raise ValueError("beams take no temperature or top_p: leave both at 1.0")
        if self.kind == "stochastic_beam" and self.top_p != 1.0:
            raise ValueError(
                f"top_p is {self.top_p}, but stochastic beams are drawn from all sequences: leave it at 1.0 "
                f"and use "
                "temperature, or take kind: sample"
            )
        return self

    @property
    def sequences(self) -> int:
        """Sequences of a prompt that an engine advances beside each other."""
        return self.candidates + 1 if self.kind == "stochastic_beam" else self.candidates

    @property
    def distribution(self) -> dict[str, Any]:
        """What the learner must know to score candidates as they were drawn: arguments of
        `sluice.learner.batches.collate.collate_groups`.
        """
        # Stochastic beams are samples; exact beams were not drawn from anything.
        return {
            "constrained": self.constrained,
            "temperature": self.temperature,
            "beams": self.kind == "beam",
        }


# Sizes of an attention head that vLLM's CPU kernels take.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class EngineSettings(Settings):
    """One vLLM engine. None means derived from the workload; the derivation is logged."""

    type: Literal["vllm"] = "vllm"
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    kv_cache_gib: float | None = Field(default=None, gt=0)
    # GPU engines: vLLM fills this share of the GPU's memory with weights and cache, instead of `kv_cache_gib`
    gpu_memory_share: float | None = Field(default=None, gt=0, le=1)
    block_size: int | None = Field(default=None, ge=16)  # CPU: a multiple of 32
    max_sequences: int | None = Field(default=None, ge=1)
    max_batched_tokens: int | None = Field(default=None, ge=64)
    tensor_parallel: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)  # CPU threads of an engine
    enforce_eager: bool = True  # no compiled graphs: a prompt is one prefill and a few short steps

    @model_validator(mode="after")
    def _one_size_of_the_cache(self) -> "EngineSettings":
        if self.kv_cache_gib is not None and self.gpu_memory_share is not None:
            raise ValueError(
                "kv_cache_gib and gpu_memory_share both say how large the cache is: leave one of them out"
            )
        return self


class TreeEngineSettings(Settings):
    """One tree engine: torch alone, all candidates of a prompt as branches behind one history. See
    docs/engines.md.
    """

    type: Literal["tree"] = "tree"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(default=1, ge=1)  # CPU threads of an engine
    # Prompts of one engine step, between which weights are swapped; null: 32 on a CPU, 256 on a GPU.
    prompts_per_step: int | None = Field(default=None, ge=1)
    # Keys and values remembered within one weight version, for prompts that extend earlier ones; 0: none;
    # null: those of twelve steps, in a quarter of the memory that is free at most.
    prefix_cache_mib: float | None = Field(default=None, ge=0)


def _engine_type(value: Any) -> str:
    """vLLM is the engine of settings that name none."""
    return value.get("type", "vllm") if isinstance(value, dict) else getattr(value, "type", "vllm")


AnyEngineSettings = Annotated[
    Annotated[EngineSettings, Tag("vllm")] | Annotated[TreeEngineSettings, Tag("tree")],
    Discriminator(_engine_type),
]


class RolloutSettings(Settings):
    """The rollout actor pool."""

    actors: int = Field(default=1, ge=1)
    decode: DecodeSettings = DecodeSettings()
    engine: AnyEngineSettings = EngineSettings()
    prompts_per_lease: int = Field(
        default=16, ge=2
    )  # one rollout batch; distractors come from its other prompts
    leases_ahead: int = Field(default=2, ge=1)  # batches kept in the engine so that it never drains
    distractors: int = Field(default=4, ge=1)  # M
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)


class RankerPoolSettings(Settings):
    """The ranker actor pool: micro-batches across callers, answers in time or is asked elsewhere."""

    actors: int = Field(default=1, ge=1)
    max_batch: int = Field(default=64, ge=1)  # prompts scored in one forward
    max_wait_ms: float = Field(default=5.0, ge=0)  # how long a request waits for company
    timeout_s: float = Field(default=30.0, gt=0)  # per attempt
    attempts: int = Field(default=3, ge=1)
    cpus: float = Field(default=0.2, ge=0)
    gpus: float = Field(default=0.0, ge=0)


class QueueSettings(Settings):
    """Bounds of the rollout queue, and when a group is too old to train on."""

    max_groups: int = Field(default=128, ge=1)  # leased + queued
    # measured: as few of them as keep the learner supplied, from the measured rates; full: always max_groups
    flow: Literal["measured", "full"] = "measured"
    max_mib: float = Field(default=256.0, gt=0)
    max_staleness: int = Field(
        default=4, ge=0
    )  # weight versions between a group's oldest token and the learner


WeightTransport = Literal["object_store", "nixl"]


class WeightSettings(Settings):
    """When new weights go to the rollout actors, and how."""

    publish_every: int = Field(default=4, ge=1)  # optimizer steps
    # object_store: one copy per node; nixl: Ray Direct Transport, learner's memory to actor's, by RDMA where
    # there is
    transport: WeightTransport = "object_store"
