"""Settings of the built-in ranker. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sluice.catalog.settings import Settings, Unit

ScoreOf = Literal["next_item", "click"]


class ItemKnnSettings(Settings):
    """Co-occurrence with the items of the history. The defaults are from MovieLens-100K's validation."""

    window: Annotated[int, Unit("items")] = Field(
        default=50,
        ge=1,
        description="Two items co-occur when at most this many places apart; so much of a history counts.",
    )
    decay: float = Field(
        default=0.8, gt=0, le=1, description="Weight of an item of the history against the one after it."
    )


class EaseSettings(Settings):
    """A linear model between all items, fitted in closed form. It holds a matrix of items by items."""

    l2: float = Field(default=500.0, gt=0, description="Ridge penalty: higher trusts rare items less.")
    window: Annotated[int, Unit("items")] = Field(
        default=50, ge=1, description="Last items of a history that count."
    )
    decay: float = Field(
        default=0.9, gt=0, le=1, description="Weight of an item of the history against the one after it."
    )
    memory_gb: Annotated[float, Unit("GB")] = Field(
        default=8.0,
        gt=0,
        description="Most memory that fitting may take, 12 bytes x items^2. A larger catalogue is refused.",
    )


class RankerSettings(Settings):
    """The built-in ranker, or the user's own as `module:Class`.

    The built-in one has up to three parts: `sequence`, `ease` and `itemknn`. Several parts are stacked: a
    weight for each is fitted on logs that the parts were not fitted on.
    """

    use: str = Field(default="builtin", description="`builtin`, or your own class as `package.module:Class`.")
    until: Literal["pretrain", "fresh"] = Field(
        default="fresh",
        description="The last part of the logs that the ranker learns from: `fresh`, as a ranker that is "
        "refreshed daily, or `pretrain`, what the policy learned from.",
    )
    users: Literal["all", "with_impressions"] = Field(
        default="all",
        description="Whose logs the ranker learns from. with_impressions: those users alone of whom the log "
        "says what was shown and not taken, as a ranker that is fitted on impressions does.",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Keyword arguments of your own class."
    )
    sequence: bool = Field(
        default=True,
        description="Whether the ranker has the sequence model, a GRU over items and their attributes. The "
        "settings from `ensemble` on are its own.",
    )
    ease: EaseSettings | None = Field(default=None, description="EASE as a part; `{}` for its defaults.")
    itemknn: ItemKnnSettings | None = Field(
        default=None, description="ItemKNN as a part; `{}` for its defaults."
    )
    stack_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Last share of each user's logs, on which the weights of several parts are fitted. The "
        "parts are fitted again with it afterwards.",
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
    scores: ScoreOf = Field(
        default="next_item",
        description="What the sequence model's score is. next_item: the log-odds, up to a term of the "
        "history, that the item is next. click: the log-odds that it is clicked when it is shown, which is "
        "what a ranker of impressions says.",
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
        default=0.1,
        ge=0,
        description="Weight of the cross-entropy of the click, of which impressions are the negatives. 0 "
        "leaves the head out.",
    )
    dwell_weight: float = Field(
        default=0.1,
        ge=0,
        description="Weight of the squared error of the standardised log(1 + dwell_seconds). 0 leaves the "
        "head out.",
    )

    @model_validator(mode="after")
    def _has_a_part(self) -> "RankerSettings":
        if self.use == "builtin" and not self.parts:
            raise ValueError("the built-in ranker has no part: set sequence to true, or ease to {}")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that the built-in ranker has."""
        present = {"sequence": self.sequence, "ease": self.ease, "itemknn": self.itemknn}
        return tuple(name for name, setting in present.items() if setting not in (None, False))

    @property
    def head_weights(self) -> dict[str, float]:
        """The weights by `sluice.catalog.data.settings.OUTCOMES`."""
        return {"rating": self.rating_weight, "click": self.click_weight, "dwell_seconds": self.dwell_weight}
