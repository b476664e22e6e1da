"""The users of a world after the end of its log: they come day by day, and somebody else fills their slates.

Tastes go on drifting, sessions follow the clicks, and what was clicked counts as consumed, all as in the log.
The items are those that lived at the log's last step.

R users, N items, S slots, D dimensions. For whoever judges: this opens the truth.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sluice.catalog.simulator.clicks import draw_clicks, draw_dwell, find_moods, slate_logits, to_probability
from sluice.catalog.simulator.items import LIVE_STREAM, make_items, random_stream
from sluice.catalog.simulator.tables import read_log
from sluice.catalog.simulator.truth import Truth
from sluice.catalog.simulator.users import UserState, follow_clicks, move_tastes

NO_ITEM = -1  # in a slot that stays empty


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What the users did with their slates on one day."""

    shown: np.ndarray  # bool [R, S], the slot has an item
    clicked: np.ndarray  # bool [R, S]
    dwell: np.ndarray  # float32 [R, S], seconds; 0 where nothing was clicked
    probability: np.ndarray  # float32 [R, S], of a click were the slot looked at; 0 where it is empty


class LiveWorld:
    """Users who come once a day from the end of the log on.

    The same seed draws the same drift of tastes, and the same luck for each user, day and slot, whatever is
    shown. So two policies can be served to the same users under the same luck.
    """

    def __init__(self, directory: str | Path, users: np.ndarray, seed: int) -> None:
        """The users `users` [R], ids of the log in `directory`, as they are when it ends.

        Raises:
            DataError: the directory holds no world with its truth and log, or the world has not such a user.
        """
        truth = Truth.open(directory)
        world, last = truth.world, truth.world.steps - 1
        truth.check_moments(users, np.full(len(users), last))
        self._world, self._seed, self._day = world, seed, 0
        self._centres = make_items(world).centres
        self._segment, self._vectors, self._quality = truth.segment[users], truth.vectors, truth.quality
        self.alive = (truth.first_step <= last) & (truth.last_step >= last)  # bool [N], for sale
        row_of = np.full(world.users.count, -1)
        row_of[users] = np.arange(len(users))
        clicks = read_log(directory, ["user_id", "item_id", "timestamp"], ("click", "=", True))
        rows, items = row_of[clicks["user_id"].to_numpy()], clicks["item_id"].to_numpy()
        self.consumed = np.zeros((len(users), world.items.count), dtype=bool)  # [R, N]
        self.consumed[rows[rows >= 0], items[rows >= 0]] = True
        self._state = UserState(
            taste=np.array(truth.tastes[users, last - world.truth_from]),
            session=np.array(truth.sessions[users, last - world.truth_from]),
        )
        steps = truth.steps_of(clicks["timestamp"].to_numpy())
        slates = _clicks_of_step(rows, items, (rows >= 0) & (steps == last), len(users), world.logger.slate)
        self._follow(np.maximum(slates, 0), slates != NO_ITEM)

    @property
    def session(self) -> np.ndarray:
        """float32 [R, D], a moving mean of what each user clicked."""
        return self._state.session

    def visit(self, slates: np.ndarray) -> Visit:
        """A day passes, and everybody is shown a slate: ids of items [R, S], NO_ITEM where there is none."""
        world, shown, items = self._world, slates != NO_ITEM, np.maximum(slates, 0)
        self._day += 1
        stream = random_stream(world.seed, LIVE_STREAM, self._seed, self._day)
        move_tastes(world.users, self._state, self._centres, stream)
        segment = self._segment[:, None]
        moods = find_moods(world.users, self._state.taste, self._state.session)
        logits = slate_logits(
            world.click, moods, self._vectors[segment, items], self._quality[segment, items]
        )
        clicked = draw_clicks(world.click, logits, shown, stream)
        dwell = np.where(clicked, draw_dwell(world.click, logits, stream), 0)
        self._follow(items, clicked)
        return Visit(
            shown=shown,
            clicked=clicked,
            dwell=dwell.astype(np.float32),
            probability=np.where(shown, to_probability(logits), 0),
        )

    def _follow(self, items: np.ndarray, clicked: np.ndarray) -> None:
        """What clicks [R, S] change: the sessions, and what is consumed."""
        row, slot = np.nonzero(clicked)
        self.consumed[row, items[row, slot]] = True
        vectors = self._vectors[self._segment[:, None], items]
        follow_clicks(self._world.users, self._state, np.arange(len(items)), vectors, clicked)


def _clicks_of_step(
    rows: np.ndarray, items: np.ndarray, chosen: np.ndarray, count: int, slots: int
) -> np.ndarray:
    """The `chosen` clicks as slates [count, slots] of the users' rows; what is left over has NO_ITEM."""
    rows, items = rows[chosen], items[chosen]
    order = np.argsort(rows, kind="stable")
    rows, items = rows[order], items[order]
    slates = np.full((count, slots), NO_ITEM)
    slates[rows, np.arange(len(rows)) - np.searchsorted(rows, rows)] = items
    return slates
