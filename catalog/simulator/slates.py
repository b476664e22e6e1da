"""What a logger shows: slates without replacement, uniform exploration, and the propensity of a slot.

U users of a block, R of them, N items, S slots, J draws. A slate is filled by drawing with replacement and
leaving out what may not be shown or stands there already. The order of the first S different draws is
distributed as that of the S largest of score + Gumbel noise, and needs no noise per item.
"""

from collections.abc import Callable

import numpy as np

EMPTY = -1  # a slot without an item
_ROUNDS = 6  # of draws, before what is missing is chosen among all items
_TINY = 1e-300

_Draw = Callable[[np.ndarray, int], np.ndarray]  # rows [R], J -> items [R, J]


class Logger:
    """What the users of a block may be shown, and by which chances, until the scores are renewed."""

    def __init__(self, scores: np.ndarray, available: np.ndarray, stream: np.random.Generator) -> None:
        """The logger with `scores` float32 [U, N].

        `available` bool [U, N] says what a user may be shown; it is kept and changed.
        """
        self._stream = stream
        self._available = available
        self._items_left = available.sum(axis=1)
        highest = np.max(scores, axis=1, keepdims=True, where=available, initial=-np.inf)
        weights = np.exp(np.minimum(scores - np.where(np.isfinite(highest), highest, 0), 0))
        self._weights = np.where(available, weights, np.float32(0))
        chances = np.cumsum(self._weights, axis=1, dtype=np.float64)
        self._weight_left = chances[:, -1].copy()
        # One ascending row for all users: the part of user u lies between u and u + 1.
        chances /= np.maximum(self._weight_left, _TINY)[:, None]
        chances += np.arange(len(scores))[:, None]
        self._chances = chances.ravel()

    def take_out(self, rows: np.ndarray, items: np.ndarray) -> None:
        """Show `items` [n] to the users `rows` [n] no more; no pair may stand twice."""
        np.subtract.at(self._weight_left, rows, self._weights[rows, items].astype(np.float64))
        np.subtract.at(self._items_left, rows, 1)
        self._weights[rows, items] = 0
        self._available[rows, items] = False

    def show(self, rows: np.ndarray, slots: int, exploration: float) -> tuple[np.ndarray, np.ndarray]:
        """Slates int64 [R, S] for the users `rows` [R], and which slots were explored, bool [R, S].

        A slot stays EMPTY when too few items may be shown.
        """
        slates = np.full((len(rows), slots), EMPTY, dtype=np.int64)
        self._fill(slates, rows, self._draw_by_score, self._log_weights)
        explored = (self._stream.random(slates.shape) < exploration) & (slates != EMPTY)
        slates[explored] = EMPTY
        self._fill(slates, rows, self._draw_uniformly, lambda _row: np.zeros(self._weights.shape[1]))
        return slates, explored

    def propensity(self, rows: np.ndarray, slates: np.ndarray, exploration: float) -> np.ndarray:
        """float32 [R, S]: (1 - exploration) x softmax share + exploration / items that may be shown.

        This is the chance of an item at the first slot, but for what exploration leaves out there: items that
        stand elsewhere in the slate. It is given for every slot, and approximate below the first, since an
        item stands in a slate once. Given the items above with a share of s in sum, a slot's chance is
        1 / (1 - s) times this one, and an item that is likely to stand above is less likely to stand here.
        The error is of the order of the largest share times the slots above.
        """
        share = self._weights[rows[:, None], np.maximum(slates, 0)].astype(np.float64)
        share /= np.maximum(self._weight_left[rows], _TINY)[:, None]
        uniform = 1 / np.maximum(self._items_left[rows], 1)[:, None]
        chance: np.ndarray = (1 - exploration) * share + exploration * uniform
        return chance.astype(np.float32)

    def _draw_by_score(self, rows: np.ndarray, draws: int) -> np.ndarray:
        """In proportion to exp(score), as it was when the scores were new."""
        items = self._weights.shape[1]
        points = rows[:, None] + self._stream.random((len(rows), draws))
        places = np.searchsorted(self._chances, points, side="right")
        drawn: np.ndarray = np.clip(places - rows[:, None] * items, 0, items - 1)
        return drawn

    def _draw_uniformly(self, rows: np.ndarray, draws: int) -> np.ndarray:
        items: np.ndarray = self._stream.integers(self._weights.shape[1], size=(len(rows), draws))
        return items

    def _log_weights(self, row: int) -> np.ndarray:
        with np.errstate(divide="ignore"):
            logs: np.ndarray = np.log(self._weights[row].astype(np.float64))
        return logs

    def _fill(
        self, slates: np.ndarray, rows: np.ndarray, draw: _Draw, log_weights: Callable[[int], np.ndarray]
    ) -> None:
        """Put different items into the empty slots of `slates` [R, S], which are those of `rows` [R].

        `log_weights` are those [N] of a user behind `draw`.
        """
        open_rows = np.flatnonzero((slates == EMPTY).any(axis=1))
        for _ in range(_ROUNDS):
            if not len(open_rows):
                return
            users = rows[open_rows]
            drawn = draw(users, 2 * slates.shape[1])
            slates[open_rows] = _place(slates[open_rows], drawn, self._available[users[:, None], drawn])
            open_rows = open_rows[(slates[open_rows] == EMPTY).any(axis=1)]
        for row in open_rows:
            keys = log_weights(rows[row]) + self._stream.gumbel(size=self._weights.shape[1])
            keys[~self._available[rows[row]]] = -np.inf
            keys[slates[row][slates[row] != EMPTY]] = -np.inf
            holes = np.flatnonzero(slates[row] == EMPTY)[: np.isfinite(keys).sum()]
            slates[row, holes] = np.argsort(-keys)[: len(holes)]


def _place(slates: np.ndarray, drawn: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Slates [R, S] with the first different ones of `drawn` [R, J] that are `allowed` in the empty slots."""
    slots = slates.shape[1]
    pool = np.concatenate([slates, drawn], axis=1)
    same = pool[:, slots:, None] == pool[:, None, :]
    earlier = np.arange(pool.shape[1]) < np.arange(slots, pool.shape[1])[:, None]
    good = allowed & ~(same & earlier).any(axis=2)
    holes = slates == EMPTY
    hole_places = np.argsort(~holes, axis=1, kind="stable")
    number = np.cumsum(good, axis=1) - 1
    taken = good & (number < holes.sum(axis=1, keepdims=True))
    row, draw = np.nonzero(taken)
    filled = slates.copy()
    filled[row, hole_places[row, number[row, draw]]] = drawn[row, draw]
    return filled
