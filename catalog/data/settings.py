"""Settings of the data: where the logs come from, how they are split, how semantic IDs are fitted. Imports no
torch.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sluice.catalog.settings import Settings


class MovieLensSource(Settings):
    """MovieLens-100K as the installed recbole wheel ships it; nothing is downloaded."""

    type: Literal["movielens-100k"] = "movielens-100k"


class InteractionColumns(Settings):
    """Which column of the user's log is which; the optional ones may be left out."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"  # null: the rows stand in order of time already
    rating: str | None = None
    click: str | None = None
    dwell_seconds: str | None = None
    exposed_by: str | None = None


class CatalogueColumns(Settings):
    """Which column of the user's catalogue is which."""

    item_id: str = "item_id"
    title: str | None = None
    attributes: tuple[str, ...] = ()  # columns of strings, numbers or lists of strings
    embedding: str | None = None  # list<float>, joined to the co-occurrence vectors
    codes: str | None = None  # list<int>, the user's own semantic IDs


class TableSource(Settings):
    """The user's own logs: Parquet or CSV files (by suffix), read in batches."""

    type: Literal["table"] = "table"
    interactions: tuple[str, ...] = Field(min_length=1)  # files, or directories of files
    columns: InteractionColumns = InteractionColumns()
    catalogue: str | None = None  # one file; without it the items are those of the log, without attributes
    catalogue_columns: CatalogueColumns = CatalogueColumns()


OUTCOMES = (
    "rating",
    "click",
    "dwell_seconds",
)  # what a log may say of an interaction beside that it took place


Source = Annotated[MovieLensSource | TableSource, Field(discriminator="type")]


class LeaveLastTwoOut(Settings):
    """Per user: the last interaction is test, the one before it validation, the rest training."""

    type: Literal["leave_last_two_out"] = "leave_last_two_out"


class GlobalTime(Settings):
    """By time: the last `test_share` of all interactions is test, the `valid_share` before it validation."""

    type: Literal["global_time"] = "global_time"
    valid_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.1, gt=0, lt=0.5)


class FreshLogs(Settings):
    """As in production: a policy pretrained up to some moment, fresh logs after it, then validation and test.

    The policy, the semantic IDs and the item vectors see the pretrain part alone. Prompts are drawn from the
    fresh part alone. Every position of validation and test is a target.
    """

    type: Literal["fresh"] = "fresh"
    by: Literal["user", "time"] = Field(
        default="user",
        description="user: shares of each user's sequence. time: shares of all interactions in order of time.",
    )
    fresh_share: float = Field(default=0.2, gt=0, lt=1, description="share of the fresh part")
    valid_share: float = Field(default=0.1, gt=0, lt=0.5, description="share of the validation part")
    test_share: float = Field(default=0.1, gt=0, lt=0.5, description="share of the test part; it is the last")

    @model_validator(mode="after")
    def _something_is_left(self) -> "FreshLogs":
        if self.pretrain_share < 0.01:
            raise ValueError("fresh_share + valid_share + test_share must leave a share for pretraining")
        return self

    @property
    def pretrain_share(self) -> float:
        """What the other parts leave."""
        return 1 - self.fresh_share - self.valid_share - self.test_share


Split = Annotated[LeaveLastTwoOut | GlobalTime | FreshLogs, Field(discriminator="type")]


class SemanticIdSettings(Settings):
    """Residual k-means over item vectors (co-occurrence in the training part, attributes, the user's
    embedding).
    """

    level_sizes: tuple[int, ...] = (32, 32, 32)  # codes per level, the collision level comes on top
    vector_dims: int = Field(default=64, ge=2)  # of the truncated SVD of the co-occurrence matrix
    window: int = Field(default=10, ge=1)  # two items co-occur when at most this many places apart
    user_share: float = Field(
        default=0.5, ge=0, le=1
    )  # weight of having users in common against standing near each other
    attribute_weight: float = Field(
        default=0.3, ge=0
    )  # norm of the attribute part against the co-occurrence part
    iterations: int = Field(default=50, ge=1)
    seed: int = 0

    @field_validator("level_sizes")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(value) <= 8 or min(value) < 2:
            raise ValueError("give 1 to 8 levels of at least 2 codes each")
        return value


class DataSettings(Settings):
    """What `sluice prepare` reads and writes."""

    name: str = "ml100k"
    source: Source = MovieLensSource()
    split: Split = LeaveLastTwoOut()
    semantic_ids: SemanticIdSettings = SemanticIdSettings()
    exclude_seen: bool = (
        True  # nobody consumes an item twice: keep consumed items out of rankings and constrained decoding
    )
    min_interactions: int = Field(default=3, ge=1)  # users with fewer are left out, and counted
    max_bad_share: float = Field(
        default=0.0, ge=0, le=1
    )  # share of rows that may be unusable before prepare gives up
    max_history: int = Field(default=50, ge=1)  # items of history that the policy and the ranker see
    # The logged reward: which column says what an interaction was worth. auto: the rating where the log has
    # ratings.
    reward: Literal["auto", "rating", "click", "dwell_seconds", "none"] = "auto"

    @model_validator(mode="after")
    def _leave_two_needs_three(self) -> "DataSettings":
        if self.split.type == "leave_last_two_out" and self.min_interactions < 3:
            raise ValueError(
                "leave_last_two_out needs min_interactions >= 3 (one each to train, validate and test)"
            )
        return self

    @model_validator(mode="after")
    def _the_reward_is_logged(self) -> "DataSettings":
        if self.reward not in OUTCOMES:
            return self
        if isinstance(self.source, MovieLensSource):
            logged, remedy = (
                self.reward == "rating",
                "MovieLens has ratings alone: set reward to rating, auto or none",
            )
        else:
            logged = getattr(self.source.columns, self.reward) is not None
            remedy = (
                f"name that column of the log in source.columns.{self.reward}, or set reward to auto or none"
            )
        if not logged:
            raise ValueError(f"reward {self.reward!r} is no column of the source: {remedy}")
        return self
