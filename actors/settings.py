"""Settings of the services around the learner: rollouts, ranker pool, queue, weight board. Imports no
torch.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sluice.catalog.decoding import Decoding
from sluice.catalog.settings import Cpus, Gpus, Prompts, Seconds, Settings, Steps, Unit


class DecodeSettings(Settings):
    """How the K candidates of a prompt are drawn; docs/rollouts.md compares the kinds.

    >>> DecodeSettings(kind="stochastic_beam", candidates=8, constrained=True).temperature
    1.0
    """

    kind: Literal["sample", "beam", "stochastic_beam"] = Field(
        default="sample",
        description="sample: K independent samples. beam: the K likeliest sequences. stochastic_beam: K "
        "distinct ones, sampled without replacement, each with the probability to be among them.",
    )
    candidates: Annotated[int, Unit("candidates")] = Field(
        default=16, ge=2, description="Candidates of a prompt, K."
    )
    temperature: float = Field(
        default=1.0, ge=0.01, le=2, description="Temperature of sampling, in the range that vLLM takes."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample from the likeliest tokens that hold this probability."
    )
    constrained: bool | None = Field(
        default=None,
        description="Mask every token to the catalogue's trie, so that candidates are items, and with "
        "`data.exclude_seen` items that the user does not have yet. null: as `data.exclude_seen` says. Free "
        "rollouts may produce a consumed item; with `data.exclude_seen` it then counts as a hallucination.",
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> "DecodeSettings":
        self.decoding(exclude_seen=False)
        return self

    def decoding(self, *, exclude_seen: bool) -> Decoding:
        """What engines carry out, and what the learner scores candidates by.

        `exclude_seen` is the data set's setting, which decides where `constrained` is null.

        Raises:
            ValueError: the kind takes no such temperature or top_p.
        """
        return Decoding(
            kind=self.kind,
            candidates=self.candidates,
            temperature=self.temperature,
            top_p=self.top_p,
            constrained=exclude_seen if self.constrained is None else self.constrained,
        )


# Sizes of an attention head that vLLM's CPU kernels take.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class VllmEngineSettings(Settings):
    """One vLLM engine. What is null is chosen for the workload, and logged."""

    type: Literal["vllm"] = "vllm"
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32", description="Precision of weights and computation. auto: as the policy is saved."
    )
    kv_cache_gib: Annotated[float | None, Unit("GiB")] = Field(
        default=None, gt=0, description="Memory of the KV cache. null: what the workload needs."
    )
    gpu_memory_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the GPU's memory that vLLM fills with weights and cache, instead of "
        "`kv_cache_gib`.",
    )
    block_size: Annotated[int | None, Unit("tokens")] = Field(
        default=None,
        ge=16,
        description="Tokens of a cache block; on a CPU a multiple of 32. null: chosen for the workload.",
    )
    max_sequences: Annotated[int | None, Unit("sequences")] = Field(
        default=None,
        ge=1,
        description="Sequences that the engine advances at once. null: those of the prompts in the engine.",
    )
    max_batched_tokens: Annotated[int | None, Unit("tokens")] = Field(
        default=None, ge=64, description="Tokens of one engine step. null: chosen for the workload."
    )
    tensor_parallel: Annotated[int, Unit("GPUs")] = Field(
        default=1, ge=1, description="GPUs that share one engine's policy."
    )
    threads: Annotated[int, Unit("CPU threads")] = Field(
        default=1, ge=1, description="CPU threads of an engine."
    )
    enforce_eager: bool = Field(
        default=True,
        description="Compile no graphs: a prompt is one prefill and a few short steps.",
    )

    @model_validator(mode="after")
    def _one_size_of_the_cache(self) -> "VllmEngineSettings":
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
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of weights and computation."
    )
    threads: Annotated[int, Unit("CPU threads")] = Field(
        default=1, ge=1, description="CPU threads of an engine."
    )
    prompts_per_step: Prompts | None = Field(
        default=None,
        ge=1,
        description="Prompts of one engine step. Weights are swapped between steps. null: 32 on a CPU, 256 "
        "on a GPU.",
    )
    prefix_cache_mib: Annotated[float | None, Unit("MiB")] = Field(
        default=None,
        ge=0,
        description="Memory for keys and values of prompts that later ones extend, within one weight "
        "version. 0: none. null: those of twelve steps, in at most a quarter of the memory that is free.",
    )


def _engine_type(value: Any) -> str:
    """vLLM is the engine of settings that name none."""
    return value.get("type", "vllm") if isinstance(value, dict) else getattr(value, "type", "vllm")


AnyEngineSettings = Annotated[
    Annotated[VllmEngineSettings, Tag("vllm")] | Annotated[TreeEngineSettings, Tag("tree")],
    Discriminator(_engine_type),
]


DistractorDraw = Literal["uniform", "popularity", "ranker_middle"]


class RolloutSettings(Settings):
    """The rollout actor pool."""

    actors: Annotated[int, Unit("processes")] = Field(
        default=1, ge=1, description="Rollout actors, each with an engine."
    )
    decode: DecodeSettings = Field(default=DecodeSettings(), description="How candidates are drawn.")
    engine: AnyEngineSettings = Field(default=VllmEngineSettings(), description="What generates.")
    prompts_per_lease: Prompts = Field(
        default=16,
        ge=2,
        description="Leases, of one prompt each, that an actor takes from the queue at a time. A prompt's "
        "distractors come from the others of the batch.",
    )
    leases_ahead: Annotated[int, Unit("batches")] = Field(
        default=2,
        ge=1,
        description="Batches of leases that are kept in the engine, so that it never runs dry.",
    )
    distractors: Annotated[int, Unit("items")] = Field(
        default=4, ge=1, description="Candidates of other prompts that the ranker scores for the gate, J."
    )
    distractor_draw: DistractorDraw = Field(
        default="uniform",
        description="How distractors are drawn from what other prompts generated. popularity: with chances "
        "in proportion to the share of the interactions. ranker_middle: four times as many are drawn and "
        "scored, and those in the middle of the ranker's order are kept.",
    )
    cpus: Cpus = Field(default=1.0, ge=0, description="CPU cores of an actor.")
    gpus: Gpus = Field(default=0.0, ge=0, description="GPUs of an actor.")


class RankerPoolSettings(Settings):
    """The ranker actor pool: micro-batches across callers, answers in time or is asked elsewhere."""

    actors: Annotated[int, Unit("processes")] = Field(
        default=1, ge=1, description="Ranker actors, each with a copy of the ranker."
    )
    max_batch: Prompts = Field(default=64, ge=1, description="Prompts scored in one forward pass at most.")
    max_wait_ms: Annotated[float, Unit("milliseconds")] = Field(
        default=5.0, ge=0, description="How long a request waits for others to share a forward pass."
    )
    timeout_s: Seconds = Field(default=30.0, gt=0, description="Longest wait for an answer, per attempt.")
    attempts: Annotated[int, Unit("attempts")] = Field(
        default=3, ge=1, description="Actors asked before a group is given up as invalid."
    )
    cpus: Cpus = Field(default=0.2, ge=0, description="CPU cores of an actor.")
    gpus: Gpus = Field(default=0.0, ge=0, description="GPUs of an actor.")


class QueueSettings(Settings):
    """Bounds of the rollout queue, and when a group is too old to train on."""

    max_groups: Annotated[int, Unit("groups")] = Field(
        default=128, ge=1, description="Groups leased and queued at most."
    )
    flow: Literal["measured", "full"] = Field(
        default="measured",
        description="How many groups are under way. measured: as few as keep the learner supplied, from the "
        "measured rates. full: always `max_groups`.",
    )
    max_mib: Annotated[float, Unit("MiB")] = Field(
        default=256.0, gt=0, description="Memory of the queued groups at most."
    )
    max_staleness: Annotated[int, Unit("weight versions")] = Field(
        default=4,
        ge=0,
        description="Weight versions between a group's oldest token and the learner at most. Groups that are "
        "older are dropped.",
    )
    max_prompt_failures: Annotated[int, Unit("failures")] = Field(
        default=3,
        ge=1,
        description="Times that a prompt may be with a rollout actor that dies, hangs or gets no scores, the "
        "last time as its only prompt. Then it is given up as invalid.",
    )
    share_window: Annotated[int, Unit("groups")] = Field(
        default=256,
        ge=1,
        description="Groups over which `max_invalid_share` and `max_stale_share` are judged: the last ones "
        "that ended.",
    )
    max_invalid_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the groups in a window that may be given up as invalid, say because the ranker "
        "fails. Beyond it the run ends. 1: it never does for that.",
    )
    max_stale_share: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Share of the groups in a window that may grow too old to train on. Beyond it the run "
        "ends. 1: it never does for that.",
    )


WeightTransport = Literal["object_store", "nixl"]


class WeightSettings(Settings):
    """When new weights go to the rollout actors, and how."""

    publish_every: Steps = Field(
        default=4, ge=1, description="Optimizer steps between two versions of the weights."
    )
    transport: WeightTransport = Field(
        default="object_store",
        description="object_store: one copy per node. nixl: Ray Direct Transport from the learner's memory "
        "to the actor's, by RDMA where there is.",
    )
