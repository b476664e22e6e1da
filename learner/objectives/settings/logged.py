"""Settings of the objectives that learn from logged rewards. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from sluice.catalog.settings import Settings, Unit


class CqlObjective(Settings):
    """Conservative Q-learning on a bandit whose Q-function is the policy itself."""

    type: Literal["cql"] = "cql"
    alpha: float = Field(default=1.0, ge=0, description="Weight of the conservative term.")
    scale: Annotated[float, Unit("reward per nat")] = Field(
        default=1.0, gt=0, description="Scale of the Q-function: Q(x, a) = V(x) + scale * log pi(a | x)."
    )


class RewardWeightedBcObjective(Settings):
    """NLL of the logged item, weighted by its logged reward; needs no rollouts."""

    type: Literal["reward_weighted_bc"] = "reward_weighted_bc"
    missing_weight: float = Field(
        default=0.0, ge=0, description="Weight of a row without a logged reward. 0 leaves the row out."
    )


class CandidateBaseline(Settings):
    """V(x) is the mean reward that the ranker predicts for the prompt's valid candidates."""

    type: Literal["candidates"] = "candidates"


class ValueHeadBaseline(Settings):
    """V(x) is a value head fitted to the logged rewards; needs no rollouts and no ranker."""

    type: Literal["value_head"] = "value_head"
    weight: float = Field(default=0.5, gt=0, description="Weight of the squared error of the value head.")


class AdvantageSftObjective(Settings):
    """A-SFT: NLL of the logged item, weighted by exp((r - V(x)) / beta)."""

    type: Literal["a_sft"] = "a_sft"
    beta: Annotated[float, Unit("reward")] = Field(
        default=1.0, gt=0, description="Temperature of the weights. The larger, the closer to plain NLL."
    )
    max_weight: float = Field(default=20.0, ge=1, le=1e8, description="Larger weights are cut to this.")
    missing_weight: float = Field(
        default=0.0, ge=0, description="Weight of a row whose advantage is unknown. 0 leaves the row out."
    )
    baseline: Annotated[CandidateBaseline | ValueHeadBaseline, Field(discriminator="type")] = Field(
        default=CandidateBaseline(),
        description="Where V(x) is taken from, the reward to expect of the prompt.",
    )
