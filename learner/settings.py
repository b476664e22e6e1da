"""Settings of what learns: policy, pretraining, ranker, gate, objectives, learner, evaluation. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from catalog.settings import Settings
from learner.preference_settings import (
    AdvantageSftObjective,
    CqlObjective,
    DpoObjective,
    IpoObjective,
    PpoObjective,
    RewardWeightedBcObjective,
)


class PolicySettings(Settings):
    """A fresh Qwen3-architecture policy, or an existing Hugging Face causal LM that gets the semantic-ID tokens."""

    base: str | None = None  # a Hugging Face model directory; when given, the sizes below are not used
    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    feed_forward_size: int = Field(default=384, ge=8)
    initializer_range: float = Field(default=0.05, gt=0)  # standard deviation of the initial weights

    @model_validator(mode="after")
    def _heads(self) -> "PolicySettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        return self


class PretrainSettings(Settings):
    """Next-token NLL over training histories, all positions supervised, kept at the best validation HR@10."""

    epochs: int = Field(default=10, ge=0)  # each sees every interaction about once; 0 takes `policy.base` as it is
    batch_interactions: int = Field(default=300, ge=16)  # padded interactions per optimizer step
    lr: float = Field(default=3e-3, gt=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    final_lr_share: float = Field(default=0.02, ge=0, le=1)  # cosine schedule down to this share of lr
    weight_decay: float = Field(default=0.05, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # on what each block adds to the residual stream
    embedding_dropout: float = Field(default=0.1, ge=0, lt=1)
    item_dropout: float = Field(default=0.0, ge=0, lt=1)  # each window loses a share of its items, uniform in 0..this
    average_decay: float = Field(default=0.995, ge=0, lt=1)  # exponential moving average of the weights, which is kept
    shuffle_ties: bool = True  # interactions of one timestamp have no order: show another one each epoch
    validate_every: int = Field(default=5, ge=1)  # epochs
    patience: int = Field(default=2, ge=1)  # validations without a better HR@10 before it stops


class RankerSettings(Settings):
    """The built-in ranker, or the user's own as `module:Class`."""

    use: str = "builtin"  # "builtin" or "package.module:Class"
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)  # keyword arguments of the user's class
    ensemble: int = Field(default=2, ge=1)
    hidden_size: int = Field(default=96, ge=4)
    epochs: int = Field(default=20, ge=1)
    batch_interactions: int = Field(default=1600, ge=64)  # padded interactions per optimizer step
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    item_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of history items hidden in training
    negatives: int = Field(default=256, ge=1)  # uniform ones per batch, beside the in-batch ones
    rating_weight: float = Field(default=0.1, ge=0)  # of the rating head's squared error


class GateSettings(Settings):
    """When the GRPO term of a prompt is admitted; algorithms section 1. tau and rho are fractions of K."""

    tau: float = Field(default=0.25, gt=0, le=1)
    rho: float = Field(default=0.5, gt=0)
    distractor_rule: Literal["below_head", "within_bottom"] = "below_head"
    parts: Literal["both", "difficulty", "discriminability"] = "both"


class CorrectionSettings(Settings):
    """Detached truncated ratio of batch-start learner to engine probabilities (TIS)."""

    level: Literal["none", "token", "sequence"] = "none"
    low: float = Field(default=0.0, ge=0)
    high: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _bounds(self) -> "CorrectionSettings":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


class GrpoSettings(Settings):
    """The group-relative term. algorithms section 2."""

    # What the clipped ratio is taken against: the engine's recorded probabilities (the ratio then corrects for lag and
    # mismatch by itself), or the learner's own at the start of the batch (`correction` then covers engine to start).
    old_policy: Literal["behaviour", "batch_start"] = "behaviour"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.2, gt=0)
    kl_beta: float = Field(default=1e-3, ge=0)  # k3 to the frozen starting policy; 0 drops the reference altogether
    correction: CorrectionSettings = CorrectionSettings()
    ground_truth: Literal["none", "override", "inject"] = "none"  # how GT may enter the group
    invalid_margin: float = Field(default=1.0, ge=0)  # a hallucination gets the group's lowest reward minus this

    @model_validator(mode="after")
    def _one_correction(self) -> "GrpoSettings":
        if self.old_policy == "behaviour" and self.correction.level != "none":
            raise ValueError(
                "correction.level must be none with old_policy=behaviour, whose ratio already is learner/engine; "
                "set old_policy=batch_start to use the truncated correction"
            )
        return self


class NllObjective(Settings):
    """Supervised NLL of the logged item alone; needs no rollouts."""

    type: Literal["nll"] = "nll"


class GrpoObjective(Settings):
    """GRPO alone."""

    type: Literal["grpo"] = "grpo"
    grpo: GrpoSettings = GrpoSettings()


class MixtureObjective(Settings):
    """NLL + weight * GRPO on every prompt (gate = 1)."""

    type: Literal["mixture"] = "mixture"
    weight: float = Field(default=1.0, ge=0)
    grpo: GrpoSettings = GrpoSettings()


class AdaGrpoObjective(Settings):
    """NLL + weight * gate * GRPO."""

    type: Literal["adagrpo"] = "adagrpo"
    weight: float = Field(default=1.0, ge=0)
    grpo: GrpoSettings = GrpoSettings()
    gate: GateSettings = GateSettings()


Objective = Annotated[
    NllObjective
    | GrpoObjective
    | MixtureObjective
    | AdaGrpoObjective
    | RewardWeightedBcObjective
    | AdvantageSftObjective
    | DpoObjective
    | IpoObjective
    | PpoObjective
    | CqlObjective,
    Field(discriminator="type"),
]


class LearnerSettings(Settings):
    """The optimizer loop of post-training."""

    workers: int = Field(default=1, ge=1)  # Ray Train workers (DDP)
    steps: int = Field(default=200, ge=1)  # optimizer steps
    prompts_per_step: int = Field(default=32, ge=1)  # over all workers
    recent_positions: int | None = Field(default=None, ge=1)  # prompts: each user's last so many; None: all of training
    updates_per_batch: int = Field(default=1, ge=1)  # optimizer updates on each batch (mu of GRPO)
    micro_batch_prompts: int | None = Field(default=None, ge=1)  # prompts per forward and worker; None: all at once
    lr: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0 with the last step
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    evaluate_every: int = Field(default=50, ge=1)  # optimizer steps between validations and checkpoints
    keep_last: int = Field(default=2, ge=1)  # full checkpoints kept beside the best policy
    wait_s: float = Field(default=180.0, gt=0)  # longest wait for rollouts before the run gives up, saying why

    @model_validator(mode="after")
    def _shares(self) -> "LearnerSettings":
        if self.prompts_per_step % self.workers:
            raise ValueError(f"prompts_per_step {self.prompts_per_step} is not divisible by workers {self.workers}")
        return self


class EvaluationSettings(Settings):
    """Beam-decoded metrics over the full catalogue, one target per user."""

    beam_width: int = Field(default=20, ge=10)
    batch_size: int = Field(default=64, ge=1)  # users per forward
    constrained: bool = True  # rank with the trie mask; hallucination is measured on free decoding either way
    max_users: int | None = Field(default=None, ge=1)  # validation on a fixed random subset; test always takes all
