"""What the users of a world do with the slates of a policy, day by day after the log's end.

Items and users of a prepared data set have rows, those of a world ids; `Ids` goes from one to the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import DataError
from sluice.catalog.simulator.clicks import examination
from sluice.catalog.simulator.live import LiveWorld
from sluice.catalog.simulator.settings import WorldSettings
from sluice.catalog.simulator.truth import Truth
from sluice.services.ab.slates import NO_ITEM, SlateMaker
from sluice.services.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Which row of a data set is which id of a world."""

    users: np.ndarray  # int64 [U], ids of the users' rows
    items: np.ndarray  # int64 [N], ids of the items' rows
    item_rows: np.ndarray  # int64 [items of the world], rows of the ids; -1 for what the data set has not

    @classmethod
    def of(cls, dataset: Dataset, world: WorldSettings) -> "Ids":
        """The data set must be made of the world's log.

        Raises:
            DataError: an id is none of the world's.
        """
        users, items = (
            _whole_numbers(ids, limit, what)
            for ids, limit, what in (
                (dataset.user_ids, world.users.count, "user"),
                (dataset.item_ids, world.items.count, "item"),
            )
        )
        rows = np.full(world.items.count, -1)
        rows[items] = np.arange(len(items))
        return cls(users=users, items=items, item_rows=rows)

    def to_items(self, slates: np.ndarray) -> np.ndarray:
        """Item ids of rows, where NO_ITEM stays."""
        return np.where(slates == NO_ITEM, NO_ITEM, self.items[slates])

    def rows_of(self, barred: np.ndarray) -> np.ndarray:
        """The item rows of a mask over ids, bool [items of the world]."""
        rows = self.item_rows[np.flatnonzero(barred)]
        return rows[rows >= 0]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What each of U users did with the slates of one policy, and what was to be expected."""

    clicks: np.ndarray  # float64 [U], per impression
    dwell: np.ndarray  # float64 [U], seconds per impression
    expected: np.ndarray  # float64 [U], true chance of a click per impression, at its place in the slate
    liked: np.ndarray  # float64 [U], true chance of a click per impression, were all looked at
    impressions: np.ndarray  # float64 [U]


def serve_users(
    maker: SlateMaker,
    directory: Path,
    dataset: Dataset,
    users: np.ndarray,
    *,
    visits: int,
    seed: int,
    progress: Progress,
) -> Outcomes:
    """Serve the users `users`, rows of the data set, for some days from the end of the log on.

    Args:
        maker: fills the slates, from what each user has clicked so far.
        directory: of the world, whose log the data set is made of.
        dataset: gives the histories, and says whether consumed items may be shown again.
        users: int [U].
        visits: days, one visit each.
        seed: of the users' luck; with the same one another policy is served under the same luck.
        progress: told the prompts done.

    Raises:
        DataError: the data set is not of the world's log.
    """
    truth = Truth.open(directory)
    ids = Ids.of(dataset, truth.world)
    world = LiveWorld(directory, ids.users[users], seed)
    histories = [dataset.items_of(user) for user in users.tolist()]
    _check_histories(world, ids, histories, directory)
    shown, sums, finished = np.zeros(len(users)), np.zeros((4, len(users))), 0

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, visits * len(users), {})

    for _ in range(visits):
        barred = np.tile(~world.alive, (len(users), 1))
        if dataset.settings.exclude_seen:
            barred |= world.consumed
        slates = maker.make(histories, [ids.rows_of(row) for row in barred], advance)
        visit = world.visit(ids.to_items(slates))
        looked_at = visit.probability * examination(truth.world.click, slates.shape[1])
        shown += visit.shown.sum(axis=1)
        sums += [part.sum(axis=1) for part in (visit.clicked, visit.dwell, looked_at, visit.probability)]
        histories = [
            np.append(history, slate[clicked])
            for history, slate, clicked in zip(histories, slates, visit.clicked, strict=True)
        ]
    clicks, dwell, expected, liked = sums / np.maximum(shown, 1)
    return Outcomes(clicks=clicks, dwell=dwell, expected=expected, liked=liked, impressions=shown)


def _check_histories(world: LiveWorld, ids: Ids, histories: Sequence[np.ndarray], directory: Path) -> None:
    """Whatever a history has was clicked in the world. Ids alone are alike in all worlds of one size."""
    for row, history in enumerate(histories):
        if not world.consumed[row, ids.items[history]].all():
            raise DataError(
                f"the data set has interactions that are no clicks of the log in {directory}: give the world "
                "whose log the data set is made of by --world, prepared with source.unclicked impression"
            )


def _whole_numbers(ids: Sequence[str], limit: int, what: str) -> np.ndarray:
    try:
        numbers = np.array(ids, dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.array([-1])
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= limit):
        raise DataError(
            f"the data set has {what}s that are none of the world's, whose {what}s are 0 to {limit - 1}: "
            "give the world whose log the data set is made of by --world"
        )
    return numbers
