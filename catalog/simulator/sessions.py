"""Simulates the visits of a block of users: tastes move, a slate is shown, clicks follow the truth.

U users of a block, T steps, S slots, D dimensions, N items.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sluice.catalog.simulator.clicks import (
    affinity_to_all,
    click_logits,
    draw_clicks,
    draw_dwell,
    find_moods,
    slate_logits,
    to_probability,
)
from sluice.catalog.simulator.items import (
    SEGMENTS,
    USER_STREAM,
    WorldItems,
    draw_vectors,
    random_stream,
    to_unit,
)
from sluice.catalog.simulator.settings import BLOCK_USERS, WorldSettings
from sluice.catalog.simulator.slates import EMPTY, Logger
from sluice.catalog.simulator.users import UserBlock, draw_users, follow_clicks, move_tastes

START = 1_420_070_400  # of step 0, in seconds since 1970: 2015-01-01
STEP_SECONDS = 86_400
IDEAL = 10  # items of a user's ideal list
# Name in the tally -> array of the log that says it of every slot.
_COUNTED = {"explored": "explored", "clicks": "clicked", "logged": "logged"}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts and sums of a part of the world, by segment: [A, B]."""

    users: list[int]
    shown: list[int]
    explored: list[int]
    clicks: list[int]
    logged: list[int]
    p_shown: list[float]  # sum of the click probability, were it looked at, over what was shown
    p_random: list[float]  # sum over users of the mean over the items alive at the last step
    p_ideal: list[float]  # sum over users of the mean over the ten best of them

    @classmethod
    def empty(cls) -> "Tally":
        """Of nobody."""
        nothing: dict[str, Any] = {field.name: [0, 0] for field in fields(cls)}
        return cls(**nothing)

    def __add__(self, other: "Tally") -> "Tally":
        ours, theirs = asdict(self), asdict(other)
        return Tally(
            **{name: [a + b for a, b in zip(ours[name], theirs[name], strict=True)] for name in ours}
        )


@dataclass(frozen=True, kw_only=True)
class BlockLog:
    """What happened to the users of a block; slots without an item have item EMPTY."""

    users: UserBlock
    timestamps: np.ndarray  # int64 [U, T], of the first slot; slots are a second apart
    items: np.ndarray  # int32 [U, T, S]
    propensity: np.ndarray  # float32 [U, T, S]
    explored: np.ndarray  # bool [U, T, S]
    clicked: np.ndarray  # bool [U, T, S]
    dwell: np.ndarray  # float32 [U, T, S], seconds; for clicks
    logged: np.ndarray  # bool [U, T, S]
    tastes: np.ndarray  # float32 [U, T - truth_from, D], before the clicks of a step
    sessions: np.ndarray  # float32 [U, T - truth_from, D], likewise
    tally: Tally


def block_count(world: WorldSettings) -> int:
    """Blocks of users; the last may be smaller."""
    return -(-world.users.count // BLOCK_USERS)


def simulate_block(world: WorldSettings, items: WorldItems, number: int) -> BlockLog:
    """Everything that happens to block `number`; it depends on nothing but the settings and that number."""
    return _BlockRun(world, items, number).run()


class _BlockRun:
    """The state of one block while it goes from step to step."""

    def __init__(self, world: WorldSettings, items: WorldItems, number: int) -> None:
        self._world, self._items = world, items
        self._stream = random_stream(world.seed, USER_STREAM, number)
        first = number * BLOCK_USERS
        count = min(BLOCK_USERS, world.users.count - first)
        self._users = draw_users(world, items, first, count, self._stream)
        shape = (count, world.steps, world.logger.slate)
        kept = (count, world.steps - world.truth_from, world.items.dims)
        self._log = {
            "items": np.full(shape, EMPTY, dtype=np.int32),
            "propensity": np.zeros(shape, dtype=np.float32),
            "explored": np.zeros(shape, dtype=bool),
            "clicked": np.zeros(shape, dtype=bool),
            "dwell": np.zeros(shape, dtype=np.float32),
            "logged": np.zeros(shape, dtype=bool),
            "timestamps": np.zeros(shape[:2], dtype=np.int64),
            "tastes": np.empty(kept, dtype=np.float32),
            "sessions": np.empty(kept, dtype=np.float32),
        }
        self._consumed = np.zeros((count, world.items.count), dtype=bool)
        self._stale = np.zeros_like(self._users.taste)
        self._p_shown = np.zeros(count)

    def run(self) -> BlockLog:
        """From the first step to the last."""
        alive = np.zeros(0, dtype=bool)  # of nothing yet
        for step in range(self._world.steps):
            if step:
                move_tastes(self._world.users, self._users, self._items.centres, self._stream)
            lives = self._items.alive(step)
            if self._learn_tastes(step) or not np.array_equal(lives, alive):
                logger, alive = self._renew_logger(lives), lives
            self._keep_truth(step)
            self._visit(step, logger)
        return BlockLog(users=self._users, tally=self._count(), **self._log)

    def _learn_tastes(self, step: int) -> bool:
        """Give the logger new tastes when it is time to; whoever has not come yet is unknown to it."""
        if step % self._world.logger.stale_steps:
            return False
        count, dims = self._stale.shape
        noise = draw_vectors(self._stream, count, dims, self._world.logger.taste_noise)
        known = self._users.first_step <= step
        self._stale = np.where(known[:, None], to_unit(self._users.taste + noise), np.float32(0))
        return True

    def _renew_logger(self, alive: np.ndarray) -> Logger:
        """The logger as of now; it sees the items as each user's segment does."""
        dials = self._world.logger
        scores = affinity_to_all(self._stale, self._users.segment, self._items.vectors)
        scores *= np.float32(dials.taste_weight * self._world.click.sharpness)
        scores += np.float32(dials.popularity_weight) * self._items.popularity
        return Logger(scores, alive & ~self._consumed, self._stream)

    def _keep_truth(self, step: int) -> None:
        place = step - self._world.truth_from
        if place >= 0:
            self._log["tastes"][:, place] = self._users.taste
            self._log["sessions"][:, place] = self._users.session

    def _visit(self, step: int, logger: Logger) -> None:
        """Show everybody who is there a slate, draw their clicks, and remember both."""
        world, log, users, stream = self._world, self._log, self._users, self._stream
        rows = np.flatnonzero(users.first_step <= step)
        slates, explored = logger.show(rows, world.logger.slate, world.logger.exploration)
        shown, items, segment = slates != EMPTY, np.maximum(slates, 0), users.segment[rows, None]
        vectors = self._items.vectors[segment, items]
        moods = find_moods(world.users, users.taste[rows], users.session[rows])
        logits = slate_logits(world.click, moods, vectors, self._items.quality[segment, items])
        clicked = draw_clicks(world.click, logits, shown, stream)
        leaked = stream.random(slates.shape) < world.segment_b.leak
        seconds = stream.integers(STEP_SECONDS - world.logger.slate, size=len(rows))
        log["timestamps"][rows, step] = START + step * STEP_SECONDS + seconds
        log["items"][rows, step] = slates
        log["propensity"][rows, step] = logger.propensity(rows, slates, world.logger.exploration)
        log["explored"][rows, step] = explored
        log["clicked"][rows, step] = clicked
        log["dwell"][rows, step] = draw_dwell(world.click, logits, stream)
        log["logged"][rows, step] = shown & (clicked | (segment == 0) | leaked)
        self._p_shown[rows] += np.where(shown, to_probability(logits), 0).sum(axis=1)
        self._follow(rows, items, vectors, clicked, logger)

    def _follow(
        self, rows: np.ndarray, items: np.ndarray, vectors: np.ndarray, clicked: np.ndarray, logger: Logger
    ) -> None:
        """What clicks change: the sessions, and what may be shown."""
        follow_clicks(self._world.users, self._users, rows, vectors, clicked)
        row, slot = np.nonzero(clicked)
        logger.take_out(rows[row], items[row, slot])
        self._consumed[rows[row], items[row, slot]] = True

    def _count(self) -> Tally:
        """The sums of the block."""
        rows_of = [self._users.segment == number for number in range(len(SEGMENTS))]
        shown = self._log["items"] != EMPTY
        p_random, p_ideal = self._judge_items()
        sums = {
            "users": np.ones(len(shown), dtype=np.int64),
            "shown": shown.sum(axis=(1, 2)),
            **{name: self._log[key].sum(axis=(1, 2)) for name, key in _COUNTED.items()},
            "p_shown": self._p_shown,
            "p_random": p_random,
            "p_ideal": p_ideal,
        }
        return Tally(
            **{name: [values[rows].sum().item() for rows in rows_of] for name, values in sums.items()}
        )

    def _judge_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean click probability of all items alive, and of the ideal ones, at the last step: [U] each."""
        last = self._world.steps - 1
        moods = find_moods(self._world.users, self._log["tastes"][:, -1], self._log["sessions"][:, -1])
        affinity = affinity_to_all(moods, self._users.segment, self._items.vectors)
        logits = click_logits(self._world.click, affinity, self._items.quality[self._users.segment])
        probability = to_probability(logits)[:, self._items.alive(last)].astype(np.float64)
        return probability.mean(axis=1), np.sort(probability, axis=1)[:, -IDEAL:].mean(axis=1)
