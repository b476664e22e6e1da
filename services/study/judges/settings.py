"""Settings of the reward model that judges the arms of a study. Imports no torch."""

from typing import Annotated

from pydantic import Field

from sluice.catalog.settings import Settings, Unit


class JudgeSettings(Settings):
    """A reward model that no arm learns from, which judges what the arms' lists are worth."""

    members: Annotated[int, Unit("models")] = Field(
        default=5, ge=2, description="Members of its ensemble; their deviation is shown."
    )
    steps: Annotated[int, Unit("items")] = Field(
        default=1,
        ge=1,
        le=20,
        description="Items that a policy generates one after the other, each with those before it in its "
        "history. Above 1 their discounted reward is a column of its own.",
    )
    discount: float = Field(default=0.9, gt=0, le=1, description="Of the reward, for each step.")
    high_rewards: bool = Field(
        default=False,
        description="Arms are judged on those users alone whose mean logged reward is above the median.",
    )
