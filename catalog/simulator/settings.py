"""Settings of a simulated world: items, users, truth, logger. Imports no numpy, no torch.

The length of noise is that of a whole vector: a coordinate has a standard deviation of length / sqrt(dims).
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from sluice.catalog.files import sha256_of
from sluice.catalog.settings import Settings, Unit

BLOCK_USERS = 250  # users of one random stream; another number makes another world
WORLD_FORMAT = 1  # of the files, and of what a seed means

Items = Annotated[int, Unit("items")]
WorldSteps = Annotated[int, Unit("steps")]


class ItemDials(Settings):
    """The catalogue: categories in a space of tastes, quality, exposure popularity, life spans."""

    count: Items = Field(default=1500, ge=2, le=200_000, description="Items of the catalogue.")
    categories: Annotated[int, Unit("categories")] = Field(
        default=30, ge=3, description="Random unit centres around which items lie and tastes are mixed."
    )
    dims: Annotated[int, Unit("dimensions")] = Field(
        default=16, ge=2, description="Dimensions of tastes and of item vectors."
    )
    spread: float = Field(
        default=0.78, ge=0, description="Length of the noise between an item and its category's centre."
    )
    quality_sd: float = Field(
        default=0.7, ge=0, description="Standard deviation of quality, which adds to the logit of a click."
    )
    late_share: float = Field(
        default=0.0, ge=0, lt=1, description="Share of cold items: they come at a random later step."
    )
    mean_life: Annotated[float, Unit("steps")] | None = Field(
        default=None, gt=0, description="Mean life span, exponential. null: who has come stays."
    )
    brands_per_category: Annotated[int, Unit("brands")] = Field(
        default=5, ge=1, description="Brands of a category, an attribute of items."
    )
    brand_noise: float = Field(
        default=0.2, ge=0, le=1, description="Share of items whose brand is one of any category."
    )


class UserDials(Settings):
    """Users: a taste that drifts and jumps, and a session that follows what was clicked."""

    count: Annotated[int, Unit("users")] = Field(default=4000, ge=1, description="Users of the world.")
    mixture: float = Field(
        default=0.7, gt=0, description="Concentration of the Dirichlet mixture of three categories."
    )
    noise: float = Field(default=0.4, ge=0, description="Length of the noise of a taste.")
    drift: float = Field(default=0.24, ge=0, description="Length of the noise that a step adds to a taste.")
    jump_chance: float = Field(
        default=0.02, ge=0, le=1, description="Chance per step that a taste jumps towards a random category."
    )
    jump_keep: float = Field(
        default=0.6, ge=0, description="Weight of the old taste in a jump, against 1 for the category."
    )
    session_weight: float = Field(
        default=0.3, ge=0, description="Weight of the session vector, which is added to the taste."
    )
    session_memory: float = Field(
        default=0.7, ge=0, lt=1, description="What the session vector keeps when something is clicked."
    )
    late_share: float = Field(
        default=0.0, ge=0, lt=1, description="Share of cold users: they come at a random later step."
    )
    attribute_noise: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of users whose attribute `favourite_category` is a random one.",
    )


class SegmentDials(Settings):
    """Segment B, whose tastes see the items otherwise: the group that a ranker cannot know."""

    share: float = Field(default=0.5, ge=0, le=1, description="Chance that a user belongs to B.")
    rotation: Annotated[float, Unit("degrees")] = Field(
        default=90.0,
        ge=0,
        le=90,
        description="Angle between the item vectors of A and of B. 0: the segments are alike; 90: B's are "
        "dealt out anew.",
    )
    leak: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of B's impressions without a click that are logged. Clicks always are.",
    )


class ClickDials(Settings):
    """The truth: logit of a click = offset + sharpness <taste + session, item> + quality; and dwell time."""

    offset: float = Field(default=-4.0, description="Logit of a click at no affinity and mean quality.")
    sharpness: float = Field(default=6.0, ge=0, description="Weight of the affinity in that logit.")
    position_bias: float = Field(
        default=0.5, ge=0, description="A slot is looked at with chance 1 / position^this."
    )
    dwell_base: float = Field(default=3.0, description="Mean log of the dwell seconds at logit 0.")
    dwell_slope: float = Field(default=0.25, description="What the logit adds to the log of dwell seconds.")
    dwell_noise: float = Field(
        default=0.5, ge=0, description="Standard deviation of the log of dwell seconds."
    )


class LoggerDials(Settings):
    """The recommender that made the log: popularity, a stale and noisy taste, uniform exploration."""

    slate: Annotated[int, Unit("slots")] = Field(
        default=8, ge=1, le=64, description="Items shown to a user in a step."
    )
    exploration: float = Field(
        default=0.1, ge=0, le=1, description="Chance that a slot shows a uniformly random item instead."
    )
    popularity_weight: float = Field(
        default=1.0, ge=0, description="Weight of an item's exposure popularity, N(0, 1), in the score."
    )
    taste_weight: float = Field(
        default=0.9,
        ge=0,
        description="Weight of `click.sharpness` <stale taste, item> in the score. 0: taste counts for "
        "nothing.",
    )
    stale_steps: WorldSteps = Field(
        default=10, ge=1, description="Steps after which the logger learns a user's taste anew."
    )
    taste_noise: float = Field(
        default=0.7, ge=0, description="Length of the noise of the taste that the logger has."
    )


class WorldSettings(Settings):
    """A world whose truth is known. A relative path is relative to the command's working directory."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the world. It names the directory, `<output>/<name>-seed<seed>`.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of everything that is drawn.")
    output: str = Field(default="worlds", description="Directory of the worlds.")
    steps: WorldSteps = Field(default=50, ge=1, le=3650, description="Visits of a user, one a day.")
    items: ItemDials = Field(default=ItemDials(), description="The catalogue.")
    users: UserDials = Field(default=UserDials(), description="The users.")
    segment_b: SegmentDials = Field(default=SegmentDials(), description="The group that is different.")
    click: ClickDials = Field(default=ClickDials(), description="The truth of clicks.")
    logger: LoggerDials = Field(default=LoggerDials(), description="Who filled the slates.")
    truth_from: WorldSteps = Field(
        default=0,
        ge=0,
        description="First step whose tastes are kept in `truth/`: 8 bytes x dims for each user and step.",
    )
    chunk_users: Annotated[int, Unit("users")] = Field(
        default=5000,
        ge=BLOCK_USERS,
        multiple_of=BLOCK_USERS,
        description="Users that are written at a time. A run that was killed goes on at the first chunk that "
        "is not whole. It changes no figure.",
    )

    @property
    def directory(self) -> Path:
        """Where the world is written, `<output>/<name>-seed<seed>`."""
        return Path(self.output) / f"{self.name}-seed{self.seed}"

    @property
    def dials(self) -> dict[str, object]:
        """What the world follows from, for `world.json`: all but names, places and pieces of work."""
        return self.model_dump(mode="json", exclude={"name", "output", "chunk_users"})

    @property
    def fingerprint(self) -> str:
        """16 hex digits of `dials` and of the format."""
        text = json.dumps([WORLD_FORMAT, BLOCK_USERS, self.dials], sort_keys=True)
        return sha256_of([text.encode()])[:16]

    @model_validator(mode="after")
    def _items_last(self) -> "WorldSettings":
        most = self.logger.slate * self.steps
        if self.items.count < most:
            raise ValueError(
                f"items.count {self.items.count} is below {most}, logger.slate {self.logger.slate} x steps "
                f"{self.steps}: no item is shown after its click, so a user could run out of items. Raise "
                "items.count, or lower steps or logger.slate"
            )
        return self

    @model_validator(mode="after")
    def _categories_have_items(self) -> "WorldSettings":
        if self.items.categories > self.items.count:
            raise ValueError(
                f"items.categories {self.items.categories} is above items.count {self.items.count}: lower it"
            )
        return self

    @model_validator(mode="after")
    def _some_truth_is_kept(self) -> "WorldSettings":
        if self.truth_from >= self.steps:
            raise ValueError(
                f"truth_from {self.truth_from} keeps none of the steps 0 to {self.steps - 1}: lower it"
            )
        return self
