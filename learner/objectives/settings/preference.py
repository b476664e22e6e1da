"""Settings of the objectives on logged rewards, on preference pairs and with a value head. Imports no
torch.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sluice.catalog.settings import Settings
from sluice.learner.rewards.settings import RankerReward, RewardComponent, check_rewards


class RewardWeightedBcObjective(Settings):
    """NLL of the logged item, weighted by its logged reward; needs no rollouts."""

    type: Literal["reward_weighted_bc"] = "reward_weighted_bc"
    missing_weight: float = Field(
        default=0.0, ge=0
    )  # weight of a row without a logged reward; 0 leaves it out


class CandidateBaseline(Settings):
    """V(x) is the mean reward that the ranker predicts for the prompt's valid candidates."""

    type: Literal["candidates"] = "candidates"


class ValueHeadBaseline(Settings):
    """V(x) is a value head fitted to the logged rewards; needs no rollouts and no ranker."""

    type: Literal["value_head"] = "value_head"
    weight: float = Field(default=0.5, gt=0)  # of the head's squared error


class AdvantageSftObjective(Settings):
    """A-SFT: NLL of the logged item, weighted by exp((r - V(x)) / beta)."""

    type: Literal["a_sft"] = "a_sft"
    beta: float = Field(default=1.0, gt=0)  # in units of the reward; the larger, the closer to plain NLL
    max_weight: float = Field(default=20.0, ge=1)  # weights are cut here
    missing_weight: float = Field(
        default=0.0, ge=0
    )  # weight of a row whose advantage is unknown; 0 leaves it out
    # What V(x), the reward to expect of the prompt, is taken from.
    baseline: Annotated[CandidateBaseline | ValueHeadBaseline, Field(discriminator="type")] = (
        CandidateBaseline()
    )


class _Rewarded(Settings):
    """Takes its candidates' rewards from components, as the group-relative objectives do."""

    rewards: tuple[RewardComponent, ...] = (RankerReward(),)  # their weighted sum is a candidate's reward
    invalid_margin: float = Field(
        default=1.0, ge=0
    )  # a hallucination gets the group's lowest reward minus this

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
    z: float = Field(default=1.0, ge=0)  # half width of an interval, in deviations over the ensemble
    ground_truth: bool = True  # the logged item takes part, with its own interval
    per_prompt: int = Field(default=4, ge=1)  # pairs at most, those with the widest gap first


class LoggedPairs(Settings):
    """Semi-generative pairs: the logged item before a generated one that is no hit."""

    type: Literal["logged_over_generated"] = "logged_over_generated"
    per_prompt: int = Field(default=4, ge=1)  # pairs at most, in the order of generation


class SelfPairs(_Rewarded):
    """Self-learning: the policy's own candidates of maximal reward before its others."""

    type: Literal["self_generated"] = "self_generated"
    per_prompt: int = Field(default=4, ge=1)  # pairs at most, those with the widest gap first


PairSettings = Annotated[IntervalPairs | LoggedPairs | SelfPairs, Field(discriminator="type")]


class DpoObjective(Settings):
    """DPO on preference pairs."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)  # per nat of the log-ratio to the reference
    pairs: PairSettings = LoggedPairs()  # which items are preferred to which
    nll_weight: float = Field(
        default=0.0, ge=0
    )  # of the NLL of each pair's preferred item, which DPO alone may raise


class IpoObjective(Settings):
    """IPO on preference pairs."""

    type: Literal["ipo"] = "ipo"
    tau: float = Field(default=0.1, gt=0)  # a pair's log-ratio margin is drawn to 1 / (2 tau) nats
    pairs: PairSettings = LoggedPairs()  # which items are preferred to which
    nll_weight: float = Field(default=0.0, ge=0)  # of the NLL of each pair's preferred item


class PpoObjective(_Rewarded):
    """PPO with a value head over the tokens of an item."""

    type: Literal["ppo"] = "ppo"
    clip: float = Field(default=0.2, gt=0)  # of the ratio, on both sides; .inf turns it off
    value_clip: float = Field(
        default=0.2, gt=0
    )  # a value that moved further in a batch is left there; units of reward
    value_weight: float = Field(default=0.5, ge=0)  # of the value loss
    gamma: float = Field(default=1.0, gt=0, le=1)  # discount per token
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    kl_coef: float = Field(
        default=0.05, ge=0
    )  # reward per nat of log pi / pi_ref, taken off each token; 0: none


class CqlObjective(Settings):
    """Conservative Q-learning on a bandit whose Q-function is the policy itself."""

    type: Literal["cql"] = "cql"
    alpha: float = Field(default=1.0, ge=0)  # of the conservative term
    scale: float = Field(default=1.0, gt=0)  # reward per nat: Q(x, a) = V(x) + scale * log pi(a | x)
