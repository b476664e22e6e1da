"""Settings of the built-in ranker. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from sluice.catalog.settings import Settings, Unit


class RankerSettings(Settings):
    """The built-in ranker, or the user's own as `module:Class`."""

    use: str = Field(default="builtin", description="`builtin`, or your own class as `package.module:Class`.")
    until: Literal["pretrain", "fresh"] = Field(
        default="fresh",
        description="The last part of the logs that the ranker learns from: `fresh`, as a ranker that is "
        "refreshed daily, or `pretrain`, what the policy learned from.",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Keyword arguments of your own class."
    )
    ensemble: Annotated[int, Unit("models")] = Field(
        default=2, ge=1, description="Models whose mean is the score and whose spread says how sure it is."
    )
    hidden_size: Annotated[int, Unit("dimensions")] = Field(
        default=96, ge=4, description="Width of the network."
    )
    epochs: Annotated[int, Unit("epochs")] = Field(
        default=20, ge=1, description="Passes over the logs until `until`."
    )
    batch_interactions: Annotated[int, Unit("interactions")] = Field(
        default=1600, ge=64, description="Interactions per optimizer step, padding included."
    )
    lr: float = Field(default=3e-3, gt=0, description="Highest learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW.")
    dropout: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        description="Dropout on the vectors that go into the network and on those that come out.",
    )
    item_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the history's items that training hides."
    )
    negatives: Annotated[int, Unit("items")] = Field(
        default=256, ge=1, description="Items drawn uniformly per batch, beside the batch's own."
    )
    rating_weight: float = Field(
        default=0.1,
        ge=0,
        description="Weight of the squared error of the standardised rating. 0 leaves the head out; the "
        "ranker then cannot predict the rating where it is the logged reward (`data.reward`).",
    )
    click_weight: float = Field(
        default=0.1, ge=0, description="Weight of the cross-entropy of the click. 0 leaves the head out."
    )
    dwell_weight: float = Field(
        default=0.1,
        ge=0,
        description="Weight of the squared error of the standardised log(1 + dwell_seconds). 0 leaves the "
        "head out.",
    )

    @property
    def head_weights(self) -> dict[str, float]:
        """The weights by `sluice.catalog.data.settings.OUTCOMES`."""
        return {"rating": self.rating_weight, "click": self.click_weight, "dwell_seconds": self.dwell_weight}
