"""Settings of the objectives: gate, group-relative term, and one class per `objective.type`. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from catalog.settings import Settings


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


Objective = Annotated[NllObjective | GrpoObjective | MixtureObjective | AdaGrpoObjective, Field(discriminator="type")]
