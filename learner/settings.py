"""Settings of what learns: policy, pretraining, ranker, optimizer loop, evaluation. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sluice.catalog.settings import Settings


class PolicySettings(Settings):
    """A fresh Qwen3-architecture policy, or an existing Hugging Face causal LM that gets the semantic-ID
    tokens.
    """

    base: str | None = None  # a Hugging Face model directory; when given, the sizes below are not used
    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    feed_forward_size: int = Field(default=384, ge=8)
    initializer_range: float = Field(default=0.05, gt=0)  # standard deviation of the initial weights
    # base of the rotary positions: the longest wavelength is 2 pi times this, and a small one tells near
    # places apart
    rope_theta: float = Field(default=10_000.0, gt=1)

    @model_validator(mode="after")
    def _heads(self) -> "PolicySettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        return self


class PretrainSettings(Settings):
    """Next-token NLL over training histories, all positions supervised, kept at the best validation HR@10."""

    epochs: int = Field(
        default=10, ge=0
    )  # each sees every interaction about once; 0 takes `policy.base` as it is
    batch_interactions: int = Field(default=300, ge=16)  # padded interactions per optimizer step
    lr: float = Field(default=3e-3, gt=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    final_lr_share: float = Field(default=0.02, ge=0, le=1)  # cosine schedule down to this share of lr
    weight_decay: float = Field(default=0.05, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # on what each block adds to the residual stream
    embedding_dropout: float = Field(default=0.1, ge=0, lt=1)
    item_dropout: float = Field(
        default=0.0, ge=0, lt=1
    )  # each window loses a share of its items, uniform in 0..this
    average_decay: float = Field(
        default=0.995, ge=0, lt=1
    )  # exponential moving average of the weights, which is kept
    shuffle_ties: bool = True  # interactions of one timestamp have no order: show another one each epoch
    validate_every: int = Field(default=5, ge=1)  # epochs
    patience: int = Field(default=2, ge=1)  # validations without a better HR@10 before it stops


class RankerSettings(Settings):
    """The built-in ranker, or the user's own as `module:Class`."""

    use: str = "builtin"  # "builtin" or "package.module:Class"
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict
    )  # keyword arguments of the user's class
    ensemble: int = Field(default=2, ge=1)
    hidden_size: int = Field(default=96, ge=4)
    epochs: int = Field(default=20, ge=1)
    batch_interactions: int = Field(default=1600, ge=64)  # padded interactions per optimizer step
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    item_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of history items hidden in training
    negatives: int = Field(default=256, ge=1)  # uniform ones per batch, beside the in-batch ones
    # What each head's loss counts. A head needs its column in the log, and 0 leaves it out; the ranker then
    # cannot predict that column where it is the logged reward (`data.reward`).
    rating_weight: float = Field(default=0.1, ge=0)  # of the squared error of the standardised rating
    click_weight: float = Field(default=0.1, ge=0)  # of the cross-entropy of the click
    dwell_weight: float = Field(
        default=0.1, ge=0
    )  # of the squared error of the standardised log(1 + dwell_seconds)

    @property
    def head_weights(self) -> dict[str, float]:
        """The weights by `sluice.catalog.data.settings.OUTCOMES`."""
        return {"rating": self.rating_weight, "click": self.click_weight, "dwell_seconds": self.dwell_weight}


class FrozenReference(Settings):
    """The starting policy, for the whole run."""

    type: Literal["frozen"] = "frozen"


class SyncedReference(Settings):
    """The policy as it was at the last multiple of `every` steps."""

    type: Literal["synced"] = "synced"
    every: int = Field(default=100, ge=1)  # optimizer steps


class EmaReference(Settings):
    """The exponential moving average of the policy over the optimizer steps."""

    type: Literal["ema"] = "ema"
    decay: float = Field(default=0.999, ge=0, lt=1)  # share of the old average that a step keeps


ReferenceSettings = Annotated[FrozenReference | SyncedReference | EmaReference, Field(discriminator="type")]


class LoraSettings(Settings):
    """Low-rank adapters beside a frozen policy, for policies too large to train whole; null trains every
    parameter.

    Engines and checkpoints get the merged weights, so that nothing else of a run differs.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)  # the product of an adapter's two matrices counts alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # on what goes into an adapter
    # Names of the linear layers that get an adapter, such as q_proj and v_proj; null: all except the output
    # embedding.
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    train_tokens: bool = (
        True  # also train the embeddings of the semantic-ID tokens (those rows alone), tied or not
    )


class LearnerSettings(Settings):
    """The optimizer loop of post-training."""

    workers: int = Field(default=1, ge=1)  # Ray Train workers
    # How several workers hold the policy: each all of it (DDP), or a share of every parameter, its gradient
    # and its optimizer state (FSDP2), for a policy that does not fit one GPU.
    sharding: Literal["ddp", "fsdp"] = "ddp"
    # Of the forward and backward passes; weights, losses and optimizer are float32 either way. Validation is
    # float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    # torch.compile of the layers' feed-forward and norms; `sluice bench compile` says whether it pays on a
    # machine
    compile: bool = False
    lora: LoraSettings | None = None
    reference: ReferenceSettings = (
        FrozenReference()
    )  # of the KL term and of preferences; unused by other objectives
    steps: int = Field(default=200, ge=1)  # optimizer steps
    prompts_per_step: int = Field(default=32, ge=1)  # over all workers
    recent_positions: int | None = Field(
        default=None, ge=1
    )  # prompts: each user's last so many; None: all of training
    updates_per_batch: int = Field(default=1, ge=1)  # optimizer updates on each batch (mu of GRPO)
    micro_batch_prompts: int | None = Field(
        default=None, ge=1
    )  # prompts per forward and worker; None: all at once
    lr: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    schedule: Literal["constant", "cosine"] = (
        "constant"  # after the warm-up; cosine ends at 0 with the last step
    )
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    evaluate_every: int = Field(default=50, ge=1)  # optimizer steps between validations and checkpoints
    keep_last: int = Field(default=2, ge=1)  # last checkpoints kept, beside the best one
    wait_s: float = Field(
        default=180.0, gt=0
    )  # longest wait for rollouts before the run gives up, saying why

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
                "or set "
                "sharding to ddp"
            )
        if self.sharding == "fsdp" and self.compile:
            raise ValueError("compile works on whole parameters: set compile to false, or sharding to ddp")
        return self


class EvaluationSettings(Settings):
    """Beam-decoded metrics over the full catalogue, one target per user."""

    beam_width: int = Field(default=20, ge=10)
    batch_size: int = Field(default=64, ge=1)  # users per forward
    constrained: bool = True  # rank with the trie mask; hallucination is measured on free decoding either way
    max_users: int | None = Field(
        default=None, ge=1
    )  # validation on a fixed random subset; test always takes all
