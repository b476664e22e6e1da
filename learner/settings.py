"""Settings of what learns: policy, pretraining, ranker, optimizer loop, evaluation. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sluice.catalog.settings import Prompts, Seconds, Settings, Steps, Unit, is_still


class PolicySettings(Settings):
    """A fresh Qwen3-architecture policy, or an existing Hugging Face causal LM that gets the semantic-ID
    tokens.
    """

    base: str | None = Field(
        default=None,
        description="Directory of a Hugging Face model. When it is given, the sizes below are not used.",
    )
    hidden_size: Annotated[int, Unit("dimensions")] = Field(
        default=128, ge=8, description="Width of the residual stream."
    )
    layers: int = Field(default=4, ge=1, description="Transformer layers.")
    heads: int = Field(default=4, ge=1, description="Attention heads. They divide `hidden_size`.")
    feed_forward_size: Annotated[int, Unit("dimensions")] = Field(
        default=384, ge=8, description="Width of the feed-forward layers."
    )
    initializer_range: float = Field(
        default=0.05, gt=0, description="Standard deviation of the initial weights."
    )
    rope_theta: float = Field(
        default=10_000.0,
        gt=1,
        description="Base of the rotary positions. The longest wavelength is 2 pi times this, in tokens; a "
        "small one tells near places apart.",
    )

    @model_validator(mode="after")
    def _heads(self) -> "PolicySettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        return self


class PretrainSettings(Settings):
    """Next-token NLL over training histories, all positions supervised, kept at the best validation HR@10."""

    epochs: Annotated[int, Unit("epochs")] = Field(
        default=10,
        ge=0,
        description="Passes over the pretrain part, each interaction about once. 0 takes `policy.base` as it "
        "is.",
    )
    batch_interactions: Annotated[int, Unit("interactions")] = Field(
        default=300, ge=16, description="Interactions per optimizer step, padding included."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw, or muon: Muon for the matrices of the layers and AdamW for all other weights.",
    )
    lr: float = Field(default=3e-3, gt=0, description="Highest learning rate.")
    warmup_share: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises to `lr`."
    )
    final_lr_share: float = Field(
        default=0.02, ge=0, le=1, description="The cosine schedule ends at this share of `lr`."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay, on matrices alone.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on what each block adds to the residual stream."
    )
    embedding_dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout on the token embeddings.")
    item_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Each window loses a share of its items, drawn uniformly between 0 and this.",
    )
    average_decay: float = Field(
        default=0.995,
        ge=0,
        lt=1,
        description="Decay per step of the exponential moving average of the weights. The average is kept.",
    )
    shuffle_ties: bool = Field(
        default=True,
        description="Interactions of one timestamp have no order: show them in another one each epoch.",
    )
    validate_every: Annotated[int, Unit("epochs")] = Field(
        default=5, ge=1, description="Epochs between two validations."
    )
    patience: Annotated[int, Unit("validations")] = Field(
        default=2, ge=1, description="Training stops after this many validations without a better HR@10."
    )


class FrozenReference(Settings):
    """The starting policy, for the whole run."""

    type: Literal["frozen"] = "frozen"


class SyncedReference(Settings):
    """The policy as it was at the last multiple of `every` steps."""

    type: Literal["synced"] = "synced"
    every: Steps = Field(default=100, ge=1, description="Optimizer steps between two copies of the policy.")


class EmaReference(Settings):
    """The exponential moving average of the policy over the optimizer steps."""

    type: Literal["ema"] = "ema"
    decay: float = Field(default=0.999, ge=0, lt=1, description="Share of the old average that a step keeps.")


ReferenceSettings = Annotated[FrozenReference | SyncedReference | EmaReference, Field(discriminator="type")]


class LoraSettings(Settings):
    """Low-rank adapters beside a frozen policy, for policies too large to train whole; null trains every
    parameter.

    Engines and checkpoints get the merged weights, so that nothing else of a run differs.
    """

    rank: int = Field(default=16, ge=1, description="Rank of an adapter: the inner size of its two matrices.")
    alpha: float = Field(
        default=32.0, gt=0, description="The product of an adapter's two matrices counts alpha / rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on what goes into an adapter.")
    targets: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Names of the linear layers that get an adapter, such as q_proj and v_proj. null: all "
        "except the output embedding.",
    )
    train_tokens: bool = Field(
        default=True,
        description="Also train the embeddings of the semantic-ID tokens (those rows alone), tied or not.",
    )


class LearnerSettings(Settings):
    """The optimizer loop of post-training."""

    workers: Annotated[int, Unit("processes")] = Field(
        default=1, ge=1, description="Ray Train workers. They share each step's prompts."
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="How several workers hold the policy. ddp: each all of it. fsdp: each a share of every "
        "parameter, its gradient and its optimizer state (FSDP2), for a policy that does not fit one GPU.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the forward and backward passes. Weights, losses, optimizer and validation "
        "are float32 either way.",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the layers' feed-forward and norms. `sluice bench compile` says "
        "whether it pays on a machine.",
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="Low-rank adapters beside a frozen policy. null: every parameter is trained.",
    )
    reference: ReferenceSettings = Field(
        default=FrozenReference(),
        description="The reference policy of the KL term and of preferences. Other objectives do not use it.",
    )
    steps: Steps = Field(default=200, ge=1, description="Optimizer steps of the whole post-training.")
    prompts_per_step: Prompts = Field(
        default=32, ge=1, description="Prompts of an optimizer step, over all workers."
    )
    prompts_per_user: Prompts | None = Field(
        default=None,
        ge=1,
        description="Each user's latest interactions of the part that prompts come from. null: all.",
    )
    updates_per_batch: Annotated[int, Unit("updates")] = Field(
        default=1, ge=1, description="Optimizer updates on each batch (mu of GRPO)."
    )
    micro_batch_prompts: Prompts | None = Field(
        default=None,
        ge=1,
        description="Prompts of one forward and backward pass of a worker. null: its whole share of a step.",
    )
    lr: float = Field(default=1e-4, gt=0, description="Learning rate after the warm-up.")
    warmup_steps: Steps = Field(
        default=10, ge=0, description="Steps in which the learning rate rises linearly to `lr`."
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="Learning rate after the warm-up. cosine ends at 0 with the last step.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW, on matrices alone.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="A longer gradient is scaled to this norm.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on embeddings and on what each block adds."
    )
    item_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Each prompt's history loses a share of its items, drawn uniformly between 0 and this. "
        "The policy and its rollouts see the history with gaps, the ranker the whole one.",
    )
    average_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the old average that a step keeps, of an exponential moving average of the "
        "weights. The average is what is validated and saved; the rollout actors get the weights themselves. "
        "0: no average.",
    )
    evaluate_every: Steps = Field(
        default=50, ge=1, description="Optimizer steps between two validations, each with a checkpoint."
    )
    patience: Annotated[int | None, Unit("validations")] = Field(
        default=None,
        ge=1,
        description="Training stops after this many validations without a better one. null: it goes on.",
    )
    keep_last: Annotated[int, Unit("checkpoints")] = Field(
        default=2, ge=1, description="Last checkpoints that are kept, beside the best one."
    )
    rollout_timeout_s: Seconds = Field(
        default=180.0,
        gt=0,
        description="Longest wait for the rollouts of a step. The run then gives up and says why.",
    )

    @model_validator(mode="after")
    def _shares(self) -> "LearnerSettings":
        if self.prompts_per_step % self.workers:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} is not divisible by workers {self.workers}"
            )
        return self

    @model_validator(mode="after")
    def _something_to_share(self) -> "LearnerSettings":
        if self.sharding == "fsdp" and self.workers == 1:
            raise ValueError(
                "sharding fsdp shares the policy out over several workers, and workers is 1: raise workers, "
                "or set sharding to ddp"
            )
        if self.sharding == "fsdp" and self.compile:
            raise ValueError("compile works on whole parameters: set compile to false, or sharding to ddp")
        return self


class EvaluationSettings(Settings):
    """Beam-decoded metrics over the full catalogue, one target per example."""

    beam_width: Annotated[int, Unit("beams")] = Field(
        default=50,
        ge=10,
        description="Beams per example, each one place of the list. Baselines get as many places. HR@50 "
        "needs 50.",
    )
    batch_size: Annotated[int, Unit("examples")] = Field(
        default=64, ge=1, description="Examples of one forward pass."
    )
    constrained: bool = Field(
        default=True,
        description="Rank with the trie's mask. Hallucination is measured on free decoding either way.",
    )
    max_users: Annotated[int | None, Unit("examples")] = Field(
        default=None,
        ge=1,
        description="Size of the fixed random subset of examples for validation. null: all. Test always "
        "takes all.",
    )
    propensity_clip: float = Field(
        default=1000.0,
        ge=1,
        exclude_if=is_still(1000.0),
        description="Largest weight of an example in weighted metrics, where the log has propensities.",
    )
    examination: Literal["inverse_sqrt", "none"] = Field(
        default="inverse_sqrt",
        exclude_if=is_still("inverse_sqrt"),
        description="Chance that a shown item is looked at, by its `slate_position`, in weighted metrics. "
        "inverse_sqrt: 1 / sqrt(position). none: 1. Without slate positions it is 1 either way.",
    )
    select_by: Literal["auto", "logged", "weighted"] = Field(
        default="auto",
        exclude_if=is_still("auto"),
        description="Which validation HR@10 says that a checkpoint is the best. logged: each example counts "
        "alike. weighted: by inverse propensity. auto: weighted where the weights know as much as 100 equal "
        "examples do. The test examples are judged by the same rule.",
    )
