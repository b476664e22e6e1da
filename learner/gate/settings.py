"""Settings of the gate. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sluice.catalog.settings import Settings, Unit


class TrustSettings(Settings):
    """Trust in the ranker for a user, by the places that it gave the user's last logged items. [ours]

    The ranker actors measure it (`sluice.learner.trust.meter`). Definition: docs/algorithms.md, Gate by user.

    >>> TrustSettings(items=7).above
    0.65
    """

    items: Annotated[int, Unit("items")] = Field(
        default=10, ge=1, description="Last logged items before the prompt, whose places are averaged."
    )
    others: Annotated[int, Unit("items")] = Field(
        default=64,
        ge=1,
        description="Items of other users that each of them is compared with. More make a place exacter, and "
        "dearer.",
    )
    above: float | None = Field(
        default=0.65,
        ge=0,
        lt=1,
        description="A prompt is admitted when its trust is above this; 0.5 is chance and 1 the best. null: "
        "no cut, but a weight that grows from 0 at chance to 1.",
    )
    at_least: Annotated[int, Unit("items")] = Field(
        default=3,
        ge=1,
        description="A prompt with fewer such items has no trust: discriminability decides instead.",
    )

    @model_validator(mode="after")
    def _can_be_measured(self) -> "TrustSettings":
        if self.at_least > self.items:
            raise ValueError(
                f"at_least {self.at_least} is more than the {self.items} items that are looked at, so no "
                f"prompt would have a trust: set at_least to {self.items} or less, or raise items"
            )
        return self


class GateSettings(Settings):
    """When the GRPO term of a prompt is admitted. tau and rho are fractions of K.

    Definition: docs/algorithms.md, AdaGRPO.

    >>> GateSettings(tau=0.5).mode
    'hard'
    >>> GateSettings(mode="random", random_rate=0.3).random_rate
    0.3
    """

    mode: Literal["hard", "random", "soft"] = Field(
        default="hard",
        description="hard: the gate of the paper. random: groups are admitted by chance at `random_rate`, to "
        "compare with. soft: an experiment, a number in [0, 1] that multiplies the term.",
    )
    tau: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="The head is the first tau * K places. A prompt is difficult when the policy has the "
        "logged item outside the head; the ranker agrees when it has the item inside.",
    )
    rho: float = Field(
        default=0.5,
        gt=0,
        description="Fraction of K that says how low distractors have to rank; see `distractor_rule`.",
    )
    distractor_rule: Literal["below_head", "within_bottom"] = Field(
        default="below_head",
        description="below_head: every distractor ranks below the first rho * K places. within_bottom: every "
        "distractor is among the last rho * K places.",
    )
    parts: Literal["both", "difficulty", "discriminability", "trust"] = Field(
        default="both",
        description="Which conditions the gate asks for: both difficulty and discriminability, or one of "
        "them alone, to compare with; all of these together with `trust` where that is set. trust: that "
        "alone.",
    )
    trust: TrustSettings | None = Field(
        default=None,
        description="The gate by user, `{}` for its defaults: a prompt is admitted only where the ranker "
        "placed the user's last logged items well.",
    )
    random_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of prompts that mode random admits: the `gate_rate` of the run to compare with.",
    )
    random_seed: int = Field(default=0, ge=0, description="Seed of mode random.")
    softness: Annotated[float, Unit("places")] = Field(
        default=1.0,
        gt=0,
        description="Places over which the soft gate opens. Near 0 it is the hard one.",
    )

    @model_validator(mode="after")
    def _mode(self) -> "GateSettings":
        random = self.mode == "random"
        if random and self.random_rate is None:
            raise ValueError(
                "mode random needs random_rate: give the gate_rate of the run that it is compared with"
            )
        fields = type(self).model_fields
        for name in ("parts", "tau", "rho", "distractor_rule", "trust"):
            if random and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with mode random, which looks at nothing: "
                    "remove it"
                )
        if self.parts == "trust" and self.trust is None:
            raise ValueError("parts trust asks for trust alone, and trust is not set: set trust to {}")
        for name in ("rho", "distractor_rule"):
            # Where trust cannot be measured, distractors count even so.
            idle = self.parts == "difficulty" and self.trust is None
            if idle and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with parts difficulty, which looks at no "
                    "distractors: remove it, or set parts to both"
                )
        if not random and (self.random_rate is not None or self.random_seed):
            raise ValueError(f"random_rate and random_seed need mode random, and mode is {self.mode}")
        if self.mode != "soft" and self.softness != 1.0:
            raise ValueError(f"softness {self.softness} needs mode soft, and mode is {self.mode}")
        return self
