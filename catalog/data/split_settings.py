"""Settings of the split: which interactions are pretrain, fresh, validation and test. Imports no torch."""

import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sluice.catalog.settings import Settings


class LeaveLastTwoOut(Settings):
    """Per user: the last interaction is test, the one before it validation, the rest training."""

    type: Literal["leave_last_two_out"] = "leave_last_two_out"


def _as_iso(value: Any) -> Any:
    """YAML reads an unquoted 2024-01-31 as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


Moment = Annotated[int | str | None, BeforeValidator(_as_iso)]  # of time: ISO 8601 text, or an epoch


class _CutByTime(Settings):
    """What splits by time have in common: parts begin at given moments, or at shares."""

    valid_from: Moment = Field(
        default=None,
        description="Where validation begins, instead of the shares: ISO 8601 text (UTC unless it names a "
        "zone), or a number in the log's unit or another unit of an epoch.",
    )
    test_from: Moment = Field(default=None, description="Where test begins; goes with `valid_from`.")

    @field_validator("fresh_from", "valid_from", "test_from", check_fields=False)
    @classmethod
    def _a_moment(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str):
            try:
                datetime.datetime.fromisoformat(value)
            except ValueError:
                raise ValueError(
                    f"{value!r} is no moment: give ISO 8601 text such as 2024-01-31 or 2024-01-31T12:00:00, "
                    "or an epoch as a whole number"
                ) from None
        return value

    @property
    def moments(self) -> dict[str, int | str]:
        """The given moments by name, in order of the parts; empty: the shares decide."""
        names = ("fresh_from", "valid_from", "test_from")
        return {name: value for name in names if (value := getattr(self, name, None)) is not None}

    def check_moments(self, names: tuple[str, ...]) -> None:
        """Raises ValueError unless all moments of `names` or none are given, without shares beside them."""
        given = self.moments
        absent = [name for name in names if name not in given]
        if given and absent:
            raise ValueError(f"{', '.join(given)} without {', '.join(absent)}: give all of them, or shares")
        fields = type(self).model_fields
        shares = [
            name for name in fields if name.endswith("_share") and getattr(self, name) != fields[name].default
        ]
        if given and shares:
            raise ValueError(
                f"{', '.join(shares)} decides nothing where {', '.join(given)} are given: leave it out"
            )


class GlobalTime(_CutByTime):
    """By time: the last `test_share` of all interactions is test, the `valid_share` before it validation.

    `valid_from` and `test_from` cut at moments instead.
    """

    type: Literal["global_time"] = "global_time"
    valid_share: float = Field(
        default=0.1, gt=0, lt=0.5, description="Share of all interactions that is validation."
    )
    test_share: float = Field(
        default=0.1, gt=0, lt=0.5, description="Share of all interactions that is test."
    )

    @model_validator(mode="after")
    def _cuts(self) -> "GlobalTime":
        self.check_moments(("valid_from", "test_from"))
        return self


class FreshLogs(_CutByTime):
    """As in production: a policy pretrained up to some moment, fresh logs after it, then validation and test.

    The policy, the semantic IDs and the item vectors see the pretrain part alone. Prompts are drawn from the
    fresh part alone. Every position of validation and test is a target.
    """

    type: Literal["fresh"] = "fresh"
    by: Literal["user", "time"] = Field(
        default="user",
        description="`user`: shares of each user's sequence. `time`: shares of all interactions, by time, or "
        "`fresh_from`, `valid_from` and `test_from`.",
    )
    fresh_from: Moment = Field(
        default=None, description="Where the fresh part begins; goes with `valid_from` and `test_from`."
    )
    fresh_share: float = Field(default=0.2, gt=0, lt=1, description="Share of the fresh part.")
    valid_share: float = Field(default=0.1, gt=0, lt=0.5, description="Share of the validation part.")
    test_share: float = Field(default=0.1, gt=0, lt=0.5, description="Share of the test part, the last one.")

    @model_validator(mode="after")
    def _something_is_left(self) -> "FreshLogs":
        if self.pretrain_share < 0.01:
            raise ValueError("fresh_share + valid_share + test_share must leave a share for pretraining")
        self.check_moments(("fresh_from", "valid_from", "test_from"))
        if self.moments and self.by == "user":
            raise ValueError("fresh_from, valid_from and test_from cut by time: set by to time")
        return self

    @property
    def pretrain_share(self) -> float:
        """What the other parts leave."""
        return 1 - self.fresh_share - self.valid_share - self.test_share


class LoggedSplit(Settings):
    """What splits have in common that come with the log: each row says its part, and parts go before time."""


class ColumnSplit(LoggedSplit):
    """A column of the log names the part of every row: `source.columns.part`.

    Without a fresh part prompts are drawn from the pretrain part.
    """

    type: Literal["column"] = "column"
    pretrain: tuple[str, ...] = Field(
        default=("pretrain", "train"), min_length=1, description="Values of the pretrain part."
    )
    fresh: tuple[str, ...] = Field(default=("fresh",), description="Values of the fresh part.")
    valid: tuple[str, ...] = Field(default=("valid",), min_length=1, description="Values of validation.")
    test: tuple[str, ...] = Field(default=("test",), min_length=1, description="Values of test.")

    @model_validator(mode="after")
    def _one_part_each(self) -> "ColumnSplit":
        values = [*self.pretrain, *self.fresh, *self.valid, *self.test]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} names more than one part, or one of them twice")
        return self


class FileSplit(LoggedSplit):
    """Every part has files of its own: `source.interactions` is pretrain, beside `source.fresh`,
    `source.valid` and `source.test`.

    Without a fresh part prompts are drawn from the pretrain part.
    """

    type: Literal["files"] = "files"


Split = Annotated[
    LeaveLastTwoOut | GlobalTime | FreshLogs | ColumnSplit | FileSplit, Field(discriminator="type")
]
