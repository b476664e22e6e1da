"""What settings name and a log does not have: refused before anything is made of it."""

from collections.abc import Mapping, Sequence

from sluice.catalog.data.settings import DataSettings, TableSource
from sluice.catalog.errors import DataError


def check_reward(settings: DataSettings, logged: Mapping[str, int], impressions: int, log: str) -> None:
    """Whether the logged reward says anything.

    Args:
        settings: `reward`.
        logged: how many usable interactions have each column.
        impressions: rows without a click that are set apart.
        log: how messages name the log.

    Raises:
        DataError: no interaction has the reward, or all have the same.
    """
    if settings.reward == "click" and impressions:
        raise DataError(
            "data.reward is click, and rows without a click are set apart as impressions, so every "
            "reward would be 1: set data.source.unclicked to interaction, or data.reward to auto or none"
        )
    if logged.get(settings.reward) == 0:
        raise DataError(
            f"data.reward is {settings.reward}, but no usable interaction of {log} has one: set data.reward "
            "to auto or none, or correct data.source.columns"
        )


def check_exposure(logged: Mapping[str, int], columns: Mapping[str, str], log: str) -> None:
    """Whether the named columns that say how an interaction was shown hold anything.

    Args:
        logged: how many usable interactions have a value, by the name of the column in `columns`.
        columns: the log's own names (`data.source.columns`).
        log: how messages name the log.

    Raises:
        DataError: one of them is empty throughout.
    """
    for name, count in logged.items():
        if count == 0:
            raise DataError(
                f"data.source.columns.{name} is {columns[name]!r}, and no usable interaction of {log} has a "
                "value there: name the column that has, or leave it out"
            )


def check_users(
    source: TableSource, known: Mapping[str, Sequence[str]], with_attributes: int, user_id: str
) -> None:
    """Whether anything is known of any user of the log.

    Args:
        source: `users` and `user_columns`.
        known: the attributes of each user of that table.
        with_attributes: users of the log that have some.
        user_id: one of the log's.

    Raises:
        DataError: none has.
    """
    if with_attributes:
        return
    if not known:
        raise DataError(f"data.source.users {source.users} holds no user: give the table of the log's users")
    raise DataError(
        f"no user of the log has an attribute in data.source.users {source.users}: its "
        f"user_columns.id {source.user_columns.id!r} holds ids such as {next(iter(known))!r}, the log such "
        f"as {user_id!r}. Name the column of the log's ids, or columns of attributes that are not empty"
    )
