"""Settings of the rewards, a list of components; their definitions: components.py. Imports no
torch.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from sluice.catalog.settings import Settings, Unit


class RankerReward(Settings):
    """The ranker's score of the candidate."""

    type: Literal["ranker"] = "ranker"
    weight: float = Field(default=1.0, description="Weight of this component in the sum.")
    transform: Literal["raw", "sigmoid", "rank", "zscore"] = Field(
        default="raw",
        description="What is done to the score. sigmoid and rank lie in [0, 1]; rank and zscore are taken "
        "over the group.",
    )


class RelevanceReward(Settings):
    """A gate that multiplies the ranker's component: 1 where the candidate starts like something relevant,
    else 0.
    """

    type: Literal["relevance"] = "relevance"
    like: Literal["target", "history"] = Field(
        default="target", description="What is relevant: the logged item, or any item of the history."
    )
    tokens: Annotated[int, Unit("tokens")] = Field(
        default=1, ge=1, description="Length of the semantic-ID prefix that has to be the same."
    )


class HitReward(Settings):
    """1 for a candidate that is the logged item, else 0."""

    type: Literal["hit"] = "hit"
    weight: float = Field(default=1.0, description="Weight of this component in the sum.")


class RankPenaltyReward(Settings):
    """ReRe's ranking reward: in a group with a hit, a miss costs the more the likelier it was; 1 over all
    places.
    """

    type: Literal["rank_penalty"] = "rank_penalty"
    weight: float = Field(default=1.0, description="Weight of this component in the sum.")


class DiversityReward(Settings):
    """1 - the share of the group's other members with the same item, or the same first tokens."""

    type: Literal["diversity"] = "diversity"
    weight: float = Field(default=1.0, description="Weight of this component in the sum.")
    tokens: Annotated[int | None, Unit("tokens")] = Field(
        default=None,
        ge=1,
        description="Length of the semantic-ID prefix that is compared. null: the whole item.",
    )


class PopularityReward(Settings):
    """-log of the item's share of the training interactions: a positive weight rewards what is rarely
    consumed.
    """

    type: Literal["popularity"] = "popularity"
    weight: float = Field(default=1.0, description="Weight of this component in the sum.")


class LoggedReward(Settings):
    """What the logs say the logged item was worth (rating, dwell), for a candidate that is it; 0 for the
    others.
    """

    type: Literal["logged"] = "logged"
    weight: float = Field(default=1.0, description="Weight of this component in the sum.")


RewardComponent = Annotated[
    RankerReward
    | RelevanceReward
    | HitReward
    | RankPenaltyReward
    | DiversityReward
    | PopularityReward
    | LoggedReward,
    Field(discriminator="type"),
]


def check_rewards(components: Sequence[RewardComponent]) -> None:
    """Refuse compositions without a meaning.

    >>> check_rewards([RankerReward(transform="zscore"), HitReward(weight=2.0)])
    >>> check_rewards([HitReward(weight=0.0)])
    Traceback (most recent call last):
    ValueError: rewards has no component with a weight: add one, such as {type: ranker}

    Raises:
        ValueError: no component, one type twice, a relevance gate without a non-negative ranker component, or
            nothing but zero weights.
    """
    by_type = {component.type: component for component in components}
    if len(by_type) < len(components):
        raise ValueError("rewards has a type twice: give each type once, with its weight")
    weights = [component.weight for component in components if not isinstance(component, RelevanceReward)]
    if not any(weights):
        raise ValueError("rewards has no component with a weight: add one, such as {type: ranker}")
    if "relevance" in by_type:
        ranker = by_type.get("ranker")
        transform = ranker.transform if isinstance(ranker, RankerReward) else None
        if transform not in ("sigmoid", "rank"):
            reason = "there is none" if transform is None else f"its transform is {transform}"
            raise ValueError(
                "the relevance reward multiplies the ranker's, which must not be negative (0 would be a "
                f"gain), and {reason}: add {{type: ranker, transform: sigmoid}}, or rank"
            )


def hit_is_best(components: Sequence[RewardComponent]) -> bool:
    """Whether no candidate can get a higher reward than one that is the logged item.

    >>> hit_is_best([HitReward(), RankPenaltyReward()]), hit_is_best([RankerReward(), HitReward()])
    (True, False)
    """
    return sum(map(_largest_lead, components)) <= 0


def _largest_lead(component: RewardComponent) -> float:
    """By how much a component may put another candidate before the logged item."""
    match component:
        case RelevanceReward():
            return 0.0  # 1 for the logged item
        case HitReward():
            return -component.weight
        case RankPenaltyReward():
            return max(-component.weight, 0.0)
        case DiversityReward():
            return abs(component.weight)
        case RankerReward() if component.transform in ("sigmoid", "rank"):
            return abs(component.weight)
        case _:
            return math.inf
