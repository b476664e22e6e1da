"""Settings of the data: where the logs come from, and how semantic IDs are fitted. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sluice.catalog.data.split_settings import ColumnSplit, FileSplit, LeaveLastTwoOut, LoggedSplit, Split
from sluice.catalog.settings import Settings, Unit, is_still


class MovieLensSource(Settings):
    """MovieLens-100K as the installed recbole wheel ships it; nothing is downloaded."""

    type: Literal["movielens-100k"] = "movielens-100k"


class InteractionColumns(Settings):
    """Which column of the user's log is which; the optional ones may be left out."""

    user_id: str = Field(default="user_id", description="Column of the user.")
    item_id: str = Field(default="item_id", description="Column of the item.")
    history: str | None = Field(
        default=None,
        description="Column of the items that the user had before this one, oldest first, as in MiniOneRec's "
        "files: a list, or text such as `[1, 2]`. The rows of a user are joined to one sequence; no event "
        "counts twice.",
    )
    timestamp: str | None = Field(
        default="timestamp",
        description="Column of the time of the interaction. null: the rows stand in order of time already.",
    )
    rating: str | None = Field(default=None, description="Column of the rating that the user gave.")
    click: str | None = Field(default=None, description="Column that says whether the user clicked.")
    dwell_seconds: str | None = Field(
        default=None, description="Column of the time that the user stayed, in seconds."
    )
    exposed_by: str | None = Field(
        default=None, description="Column of the system that showed the item to the user."
    )
    propensity: str | None = Field(
        default=None,
        exclude_if=is_still(None),
        description="Column of the chance, above 0 and at most 1, with which the system showed this item "
        "where it did. With it metrics are weighted by inverse propensity too.",
    )
    slate_position: str | None = Field(
        default=None,
        exclude_if=is_still(None),
        description="Column of the item's place in the slate that was shown, from 1. It says how likely the "
        "item was looked at.",
    )
    part: str | None = Field(
        default=None,
        description="Column that names the part of the row, for `split.type: column`: pretrain, fresh, valid "
        "or test.",
    )

    @model_validator(mode="after")
    def _places_weigh_propensities(self) -> "InteractionColumns":
        if self.slate_position is not None and self.propensity is None:
            raise ValueError(
                "slate_position says nothing without the propensity of the place: name the column of "
                "propensity too, or leave slate_position out"
            )
        return self


class CatalogueColumns(Settings):
    """Which column of the user's catalogue is which."""

    item_id: str = Field(default="item_id", description="Column of the item.")
    title: str | None = Field(default=None, description="Column of the title.")
    attributes: tuple[str, ...] = Field(
        default=(), description="Columns of attributes: strings, numbers or lists of strings."
    )
    embedding: str | None = Field(
        default=None,
        description="Column of a vector per item, `list<float>`. It is joined to the co-occurrence vectors.",
    )
    codes: str | None = Field(
        default=None, description="Column of your own semantic IDs, `list<int>`; none are fitted then."
    )


class UserColumns(Settings):
    """Which column of the user's table of users is which."""

    id: str = Field(default="user_id", description="Column of the user.")
    attributes: tuple[str, ...] = Field(
        default=(), description="Columns of attributes: strings, numbers or lists of strings."
    )


class TableSource(Settings):
    """The user's own logs: Parquet or CSV files (by suffix), read in batches."""

    type: Literal["table"] = "table"
    interactions: tuple[str, ...] = Field(
        min_length=1,
        description="Files of the log, or directories of files. With `split.type: files`: of the pretrain "
        "part.",
    )
    fresh: tuple[str, ...] = Field(
        default=(), description="Files of the fresh part, for `split.type: files`; there may be none."
    )
    valid: tuple[str, ...] = Field(
        default=(), description="Files of the validation part, for `split.type: files`."
    )
    test: tuple[str, ...] = Field(default=(), description="Files of the test part, for `split.type: files`.")
    unclicked: Literal["impression", "interaction"] = Field(
        default="impression",
        description="What a row is whose `columns.click` is 0. `impression`: the item was shown and not "
        "taken. It is no target, is in no history, and is kept in impressions.parquet. `interaction`: it "
        "took place.",
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "none"] = Field(
        default="auto",
        description="What numbers in the time column count since 1970. `auto`: told from their size. `none`: "
        "they are no such times, only their order counts.",
    )
    columns: InteractionColumns = Field(
        default=InteractionColumns(), description="Names of the log's columns."
    )
    catalogue: str | None = Field(
        default=None,
        description="File of the catalogue. null: the items are those of the log, without attributes.",
    )
    catalogue_columns: CatalogueColumns = Field(
        default=CatalogueColumns(), description="Names of the catalogue's columns."
    )
    users: str | None = Field(
        default=None,
        exclude_if=is_still(None),
        description="File of what is known of the users beside the log. The built-in ranker learns from the "
        "attributes in it, at most 64 of a user. null: nothing is.",
    )
    user_columns: UserColumns = Field(
        default=UserColumns(),
        exclude_if=is_still(UserColumns()),
        description="Names of the columns of `users`.",
    )

    @model_validator(mode="after")
    def _users_have_attributes(self) -> "TableSource":
        if (self.users is None) != (not self.user_columns.attributes):
            raise ValueError(
                f"users is {self.users!r} and user_columns.attributes names "
                f"{', '.join(self.user_columns.attributes) or 'no column'}: give both, or neither"
            )
        if self.users is None and self.user_columns != UserColumns():
            raise ValueError(
                f"user_columns.id is {self.user_columns.id!r}, and users names no file: name it, or leave "
                "user_columns out"
            )
        return self


# What a log may say of an interaction beside that it took place.
OUTCOMES = ("rating", "click", "dwell_seconds")


Source = Annotated[MovieLensSource | TableSource, Field(discriminator="type")]


class SemanticIdSettings(Settings):
    """Residual k-means over item vectors (co-occurrence in the pretrain part, attributes, the user's
    embedding).
    """

    level_sizes: Annotated[tuple[int, ...] | None, Unit("codes")] = Field(
        default=None,
        description="Codes of each level. The level that resolves collisions comes on top. null: levels "
        "that follow the catalogue, the first with two thirds of it and at most 8,192 codes.",
    )
    vector_dims: Annotated[int, Unit("dimensions")] = Field(
        default=64, ge=2, description="Size of the vectors: rank of the truncated SVD of the co-occurrences."
    )
    window: Annotated[int, Unit("places")] = Field(
        default=10, ge=1, description="Two items of a history co-occur when at most this far apart."
    )
    user_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="What users in common count; standing near each other counts 1 less this.",
    )
    attribute_weight: float = Field(
        default=0.3, ge=0, description="Norm of the attributes' part against that of the co-occurrences."
    )
    iterations: int = Field(default=50, ge=1, description="Iterations of k-means per level.")
    seed: int = Field(default=0, description="Seed of k-means.")

    @field_validator("level_sizes")
    @classmethod
    def _sizes(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        if not 1 <= len(value) <= 8 or min(value) < 2:
            raise ValueError("give 1 to 8 levels of at least 2 codes each")
        return value


class DataSettings(Settings):
    """What `sluice prepare` reads and writes."""

    name: str = Field(default="ml100k", description="Name of the data set in reports.")
    source: Source = Field(default=MovieLensSource(), description="Where the logs come from.")
    split: Split = Field(default=LeaveLastTwoOut(), description="What is training, validation and test.")
    semantic_ids: SemanticIdSettings = Field(
        default=SemanticIdSettings(), description="How semantic IDs are fitted."
    )
    exclude_seen: bool = Field(
        default=True,
        description="Nobody consumes an item twice: keep consumed items out of rankings and constrained "
        "decoding.",
    )
    min_interactions: Annotated[int, Unit("interactions")] = Field(
        default=3, ge=1, description="Users with fewer are left out, and counted."
    )
    max_bad_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of rows that may be unusable before prepare gives up."
    )
    max_history: Annotated[int, Unit("items")] = Field(
        default=50, ge=1, description="Latest items of a history, all that policy and ranker see."
    )
    reward: Literal["auto", "rating", "click", "dwell_seconds", "none"] = Field(
        default="auto",
        description="The logged reward: the column that says what an interaction was worth. auto: the rating "
        "where the log has ratings.",
    )

    @model_validator(mode="after")
    def _leave_two_needs_three(self) -> "DataSettings":
        if self.split.type == "leave_last_two_out" and self.min_interactions < 3:
            raise ValueError(
                "leave_last_two_out needs min_interactions >= 3 (one each to train, validate and test)"
            )
        return self

    @model_validator(mode="after")
    def _the_source_brings_the_parts(self) -> "DataSettings":
        table = self.source if isinstance(self.source, TableSource) else None
        if isinstance(self.split, LoggedSplit) and table is None:
            raise ValueError(f"split {self.split.type} reads the parts from the log, which MovieLens has not")
        column = table.columns.part if table else None
        if isinstance(self.split, ColumnSplit) != (column is not None):
            raise ValueError(
                f"split column reads the part of a row from source.columns.part (which is {column!r}), and "
                f"split {self.split.type} is set: give both, or neither"
            )
        given = [name for name in ("fresh", "valid", "test") if table and getattr(table, name)]
        if isinstance(self.split, FileSplit) and not {"valid", "test"} <= set(given):
            raise ValueError("split files needs files in source.valid and in source.test")
        if given and not isinstance(self.split, FileSplit):
            raise ValueError(
                f"source.{given[0]} holds the files of one part, and split {self.split.type} divides the log "
                "otherwise: set split to {type: files}, or move these files to source.interactions"
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
