"""Settings of the objectives: gate, group-relative terms, and one class per `objective.type`. Imports no
torch.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sluice.catalog.settings import Settings, Unit
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.settings.effects import changed
from sluice.learner.objectives.settings.logged import (
    AdvantageSftObjective,
    CqlObjective,
    RewardWeightedBcObjective,
)
from sluice.learner.objectives.settings.preference import DpoObjective, IpoObjective, PpoObjective
from sluice.learner.rewards.settings import (
    HitReward,
    RankerReward,
    RankPenaltyReward,
    RelevanceReward,
    RewardComponent,
    check_rewards,
    hit_is_best,
)


class CorrectionSettings(Settings):
    """Detached ratio of batch-start learner to engine probabilities, kept within bounds."""

    level: Literal["none", "token", "sequence"] = Field(
        default="none", description="Whether there is a ratio per token, per sequence, or none."
    )
    outside: Literal["truncate", "mask"] = Field(
        default="truncate",
        description="What happens to a ratio outside the bounds. truncate: it becomes the bound (TIS). mask: "
        "its token or sequence counts 0 (MIS).",
    )
    low: float = Field(default=0.0, ge=0, description="Lower bound of the ratio.")
    high: float = Field(
        default=2.0, gt=0, allow_inf_nan=True, description="Upper bound of the ratio. .inf: none."
    )

    @model_validator(mode="after")
    def _bounds(self) -> "CorrectionSettings":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.level == "none" and (idle := changed(self, "outside", "low", "high")):
            raise ValueError(
                f"{idle[0]} {getattr(self, idle[0])} has no effect with level none: set level to token or "
                "sequence, or remove it"
            )
        return self


class GroupSettings(Settings):
    """What is common to all group-relative terms: rewards, ground truth, advantages.

    Definition: docs/algorithms.md, GRPO.
    """

    rewards: tuple[RewardComponent, ...] = Field(
        default=(RankerReward(),),
        description="Components of the reward. Their weighted sum is a candidate's reward.",
    )
    ground_truth: Literal["none", "override", "inject"] = Field(
        default="none",
        description="How the logged item enters the group. override: a candidate that equals it takes the "
        "group's highest reward. inject: it replaces a candidate where none is a hit.",
    )
    invalid_margin: Annotated[float, Unit("reward")] = Field(
        default=1.0, ge=0, description="A hallucination gets the group's lowest reward less this."
    )
    advantage: Literal["grpo", "dr_grpo", "rloo"] = Field(
        default="grpo",
        description="grpo: the reward less the group's mean, over its deviation. dr_grpo: without the "
        "deviation. rloo: the reward less the mean of the others.",
    )
    inclusion_weights: Literal["unbiased", "normalised"] = Field(
        default="unbiased",
        description="Weights of the members of stochastic beams. unbiased, or normalised: they sum to about "
        "one, with less variance and a bias that vanishes with K.",
    )

    @field_validator("rewards")
    @classmethod
    def _rewards(cls, value: tuple[RewardComponent, ...]) -> tuple[RewardComponent, ...]:
        check_rewards(value)
        return value

    @model_validator(mode="after")
    def _override_lifts_something(self) -> "GroupSettings":
        lifted = self.ground_truth != "inject" and changed(self, "ground_truth")
        if lifted and hit_is_best(self.rewards):
            raise ValueError(
                f"ground_truth {self.ground_truth} has no effect: with these rewards no candidate can get "
                "more than one that is the logged item; remove it"
            )
        return self

    @model_validator(mode="after")
    def _injected_popularity(self) -> "GroupSettings":
        if self.ground_truth == "inject" and any(
            component.type == "popularity" for component in self.rewards
        ):
            raise ValueError(
                "ground_truth=inject needs the ground truth's own reward, and a batch has the popularity of "
                "candidates only: set ground_truth to override or none, or remove the popularity reward"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the term compares with the reference policy."""
        return False

    @property
    def uses_engine_probabilities(self) -> bool:
        """Whether the term divides by the probabilities that the engine recorded."""
        return False


class OffPolicySettings(GroupSettings):
    """What is common to the group-relative terms with a ratio to an old policy."""

    old_policy: Literal["behaviour", "batch_start"] = Field(
        default="behaviour",
        description="What the ratio is taken against. behaviour: the probabilities that the engine recorded; "
        "the ratio then corrects for lag and mismatch by itself. batch_start: the learner's own at the start "
        "of the batch; `correction` then covers engine to start.",
    )
    correction: CorrectionSettings = Field(
        default=CorrectionSettings(), description="Correction from the engine to the start of the batch."
    )
    kl_beta: float = Field(
        default=1e-3,
        ge=0,
        description="Weight of the KL divergence (k3) from the reference policy. 0: no reference.",
    )

    @model_validator(mode="after")
    def _one_correction(self) -> "OffPolicySettings":
        if self.old_policy == "behaviour" and self.correction.level != "none":
            raise ValueError(
                "correction.level must be none with old_policy=behaviour, whose ratio already is "
                "learner/engine; set old_policy=batch_start to use the truncated correction"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the term compares with the reference policy."""
        return self.kl_beta > 0

    @property
    def uses_engine_probabilities(self) -> bool:
        """Whether the term divides by the probabilities that the engine recorded."""
        return self.old_policy == "behaviour" or self.correction.level != "none"


class GrpoSettings(OffPolicySettings):
    """The group-relative term; docs/algorithms.md, GRPO.

    Dr.GRPO is `advantage: dr_grpo`; RLOO `advantage: rloo`; GSPO `ratio: gspo`; DAPO `clip_high: 0.28,
    kl_beta: 0, drop_equal_groups: true`.
    """

    ratio: Literal["token", "sequence", "gspo"] = Field(
        default="token",
        description="token: one ratio per token. sequence: the product over the item's tokens. gspo: the "
        "product to the power 1/L.",
    )
    clip_low: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The ratio is clipped at 1 less this. null: 0.2, and 3e-4 for the ratio gspo.",
    )
    clip_high: float | None = Field(
        default=None,
        gt=0,
        description="The ratio is clipped at 1 plus this. null: 0.2, and 4e-4 for the ratio gspo. DAPO has "
        "0.28.",
    )
    drop_equal_groups: bool = Field(
        default=False,
        description="Leave groups whose rewards are all equal out of the mean, instead of counting them as 0 "
        "(DAPO).",
    )

    @model_validator(mode="after")
    def _levels_agree(self) -> "GrpoSettings":
        if self.ratio != "token" and self.correction.level == "token":
            raise ValueError(
                f"correction.level token does not go with ratio {self.ratio}, which is one number per "
                f"candidate: set correction.level to sequence"
            )
        return self

    @model_validator(mode="after")
    def _dropping_is_known_from_the_batch(self) -> "GrpoSettings":
        if self.drop_equal_groups and self.ground_truth == "inject":
            raise ValueError(
                "drop_equal_groups does not go with ground_truth=inject: whether GT can be injected is known "
                "only after scoring, and the mean's denominator must be known before; set ground_truth to "
                "override or none"
            )
        return self

    @property
    def clips(self) -> tuple[float, float]:
        """The bounds, (low, high): the ratio is clipped to [1 - low, 1 + high]."""
        low, high = (3e-4, 4e-4) if self.ratio == "gspo" else (0.2, 0.2)
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )


class RereSettings(GrpoSettings):
    """The group-relative term of ReRe: GRPO on hit and rank, no ranker."""

    rewards: tuple[RewardComponent, ...] = Field(
        default=(HitReward(), RankPenaltyReward()),
        description="Components of the reward. Their weighted sum is a candidate's reward.",
    )

    @model_validator(mode="after")
    def _no_ranker(self) -> "RereSettings":
        if any(component.type in ("ranker", "relevance") for component in self.rewards):
            raise ValueError(
                "rere takes its rewards from rules, not from the ranker: use objective.type grpo for that"
            )
        return self


class EcpoSettings(OffPolicySettings):
    """The group-relative term of ECPO: the ratio of a negative advantage is bounded early."""

    kl_beta: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL divergence (k3) from the reference policy. 0: no reference.",
    )
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="The ratio is clipped at 1 less this.")
    clip_high: float = Field(default=0.2, gt=0, description="The ratio is clipped at 1 plus this.")
    early_clip_margin: float = Field(
        default=0.1,
        ge=0,
        description="delta of the paper: a ratio never exceeds 1 + clip_high + this.",
    )


class GbpoSettings(OffPolicySettings):
    """The group-relative term of GBPO: gradients bounded by the old policy, nothing clipped."""

    kl_beta: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL divergence (k3) from the reference policy. 0: no reference.",
    )


class GrpoSrSettings(GroupSettings):
    """The group-relative term of GRPO-SR: preference times relevance, positives at the group's maximum."""

    rewards: tuple[RewardComponent, ...] = Field(
        default=(RankerReward(transform="sigmoid"), RelevanceReward()),
        description="Components of the reward. Their weighted sum is a candidate's reward.",
    )
    ground_truth: Literal["none", "override", "inject"] = Field(
        default="override",
        description="How the logged item enters the group. override: a candidate that equals it takes the "
        "group's highest reward. inject: it replaces a candidate where none is a hit.",
    )


class NllObjective(Settings):
    """Supervised NLL of the logged item alone; needs no rollouts."""

    type: Literal["nll"] = "nll"


class GrpoObjective(Settings):
    """GRPO and its relatives (Dr.GRPO, DAPO, RLOO, GSPO by the settings of the term), alone."""

    type: Literal["grpo"] = "grpo"
    grpo: GrpoSettings = Field(default=GrpoSettings(), description="The group-relative term.")


class _Mixed(Settings):
    """NLL on every prompt and a group-relative term beside it."""

    weight: float = Field(default=1.0, ge=0, description="Weight of the group-relative term beside the NLL.")
    grpo: GrpoSettings = Field(default=GrpoSettings(), description="The group-relative term.")

    @field_validator("grpo")
    @classmethod
    def _one_denominator(cls, value: GrpoSettings) -> GrpoSettings:
        if value.drop_equal_groups:
            raise ValueError(
                "drop_equal_groups changes what the loss is a mean over, and here the NLL is a mean over all "
                "prompts: set it to false (an equal group has no policy gradient anyhow), or use "
                "objective.type grpo"
            )
        return value


class MixtureObjective(_Mixed):
    """NLL + weight * GRPO on every prompt (gate = 1)."""

    type: Literal["mixture"] = "mixture"


class AdaGrpoObjective(_Mixed):
    """NLL + weight * gate * GRPO."""

    type: Literal["adagrpo"] = "adagrpo"
    gate: GateSettings = Field(default=GateSettings(), description="Which prompts the term counts for.")


class GrpoSrObjective(Settings):
    """GRPO-SR: REINFORCE with a group baseline, and the likelihood of the positives. No clip, no KL."""

    type: Literal["grpo_sr"] = "grpo_sr"
    alpha: float = Field(default=1.0, ge=0, description="Weight of the logged item's likelihood.")
    grpo: GrpoSrSettings = Field(default=GrpoSrSettings(), description="The group-relative term.")


class EcpoObjective(Settings):
    """ECPO (OneRec), alone."""

    type: Literal["ecpo"] = "ecpo"
    grpo: EcpoSettings = Field(default=EcpoSettings(), description="The group-relative term.")


class GbpoObjective(Settings):
    """GBPO (OneRec-V2), alone."""

    type: Literal["gbpo"] = "gbpo"
    grpo: GbpoSettings = Field(default=GbpoSettings(), description="The group-relative term.")


class RereObjective(Settings):
    """ReRe: GRPO on rule-based rewards (hit and rank), alone."""

    type: Literal["rere"] = "rere"
    grpo: RereSettings = Field(default=RereSettings(), description="The group-relative term.")


Objective = Annotated[
    NllObjective
    | GrpoObjective
    | MixtureObjective
    | AdaGrpoObjective
    | GrpoSrObjective
    | EcpoObjective
    | GbpoObjective
    | RereObjective
    | RewardWeightedBcObjective
    | AdvantageSftObjective
    | DpoObjective
    | IpoObjective
    | PpoObjective
    | CqlObjective,
    Field(discriminator="type"),
]
