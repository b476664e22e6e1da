"""Settings of the objectives on preference pairs, and of PPO. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sluice.catalog.settings import Settings, Unit
from sluice.learner.rewards.settings import RankerReward, RelevanceReward, RewardComponent, check_rewards


class _Rewarded(Settings):
    """Takes its candidates' rewards from components, as the group-relative objectives do."""

    rewards: tuple[RewardComponent, ...] = Field(
        default=(RankerReward(),),
        description="Components of the reward. Their weighted sum is a candidate's reward.",
    )
    invalid_margin: Annotated[float, Unit("reward")] = Field(
        default=1.0, ge=0, description="A hallucination gets the group's lowest reward less this."
    )

    @field_validator("rewards")
    @classmethod
    def _rewards(cls, value: tuple[RewardComponent, ...]) -> tuple[RewardComponent, ...]:
        check_rewards(value)
        return value


class IntervalPairs(Settings):
    """Pairs that the ranker's ensemble is sure of: score - z * spread of the one is above score + z * spread
    of the other.
    """

    type: Literal["ranker_intervals"] = "ranker_intervals"
    z: Annotated[float, Unit("deviations")] = Field(
        default=1.0, ge=0, description="Half width of an interval, in deviations over the ensemble."
    )
    ground_truth: bool = Field(default=True, description="The logged item takes part, with its own interval.")
    per_prompt: Annotated[int, Unit("pairs")] = Field(
        default=4, ge=1, description="Pairs of a prompt at most, those with the widest gap first."
    )


class LoggedPairs(Settings):
    """Semi-generative pairs: the logged item before a generated one that is no hit."""

    type: Literal["logged_over_generated"] = "logged_over_generated"
    per_prompt: Annotated[int, Unit("pairs")] = Field(
        default=4, ge=1, description="Pairs of a prompt at most, in the order of generation."
    )


class SelfPairs(_Rewarded):
    """Self-learning: the policy's own candidates of maximal reward before its others."""

    type: Literal["self_generated"] = "self_generated"
    per_prompt: Annotated[int, Unit("pairs")] = Field(
        default=4, ge=1, description="Pairs of a prompt at most, those with the widest gap first."
    )

    @model_validator(mode="after")
    def _order_alone(self) -> "SelfPairs":
        if self.invalid_margin not in (0, 1):
            raise ValueError(
                f"invalid_margin {self.invalid_margin} has no effect: pairs go by the order of the rewards, "
                "so that every margin above 0 does the same; leave it at 1.0, or set it to 0"
            )
        weighed = [reward for reward in self.rewards if not isinstance(reward, RelevanceReward)]
        only = weighed[0] if len(weighed) == len(self.rewards) == 1 else None
        if only is not None and abs(only.weight) != 1:
            raise ValueError(
                f"weight {only.weight} of the {only.type} reward has no effect: pairs go by the order of the "
                "rewards, which the weight of a single component does not change; set it to 1 or -1"
            )
        if isinstance(only, RankerReward) and only.transform != "raw":
            raise ValueError(
                f"transform {only.transform} has no effect: pairs go by the order of the rewards, which it "
                "does not change; leave it at raw"
            )
        return self


PairSettings = Annotated[IntervalPairs | LoggedPairs | SelfPairs, Field(discriminator="type")]


class DpoObjective(Settings):
    """DPO on preference pairs."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(
        default=0.1, gt=0, description="Scale of the log-ratio to the reference policy, per nat."
    )
    pairs: PairSettings = Field(default=LoggedPairs(), description="Which items are preferred to which.")
    nll_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the NLL of each pair's preferred item, which DPO alone may raise.",
    )


class IpoObjective(Settings):
    """IPO on preference pairs."""

    type: Literal["ipo"] = "ipo"
    tau: float = Field(
        default=0.1, gt=0, description="The margin of a pair's log-ratios is drawn to 1 / (2 tau) nats."
    )
    pairs: PairSettings = Field(default=LoggedPairs(), description="Which items are preferred to which.")
    nll_weight: float = Field(
        default=0.0, ge=0, description="Weight of the NLL of each pair's preferred item."
    )


class PpoObjective(_Rewarded):
    """PPO with a value head over the tokens of an item."""

    type: Literal["ppo"] = "ppo"
    clip: float = Field(
        default=0.2,
        gt=0,
        allow_inf_nan=True,
        description="The ratio is clipped at 1 less and 1 plus this. .inf turns it off.",
    )
    value_clip: Annotated[float, Unit("reward")] = Field(
        default=0.2, gt=0, description="A value that moved further within a batch is left where it is."
    )
    value_weight: float = Field(default=0.5, ge=0, description="Weight of the value loss.")
    gamma: float = Field(default=1.0, gt=0, le=1, description="Discount per token.")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="lambda of generalised advantage estimation."
    )
    kl_coef: Annotated[float, Unit("reward per nat")] = Field(
        default=0.05, ge=0, description="What log pi / pi_ref takes off the reward of each token. 0: nothing."
    )
