"""The prompt feed: every training example once per epoch, in an order that (seed, epoch) alone decides.

A feed is a place in that order, so a checkpoint holds four numbers and a restored feed goes on with the very
next example.
"""

from typing import Any

import numpy as np

from sluice.catalog.errors import DataError, RunError


class PromptFeed:
    """A cursor over the examples `(users[i], positions[i])`, reshuffled every epoch."""

    def __init__(self, users: np.ndarray, positions: np.ndarray, seed: int) -> None:
        """`users` and `positions` are int32 `[n]`.

        Raises:
            DataError: there is no example, or the arrays differ in length.
        """
        if len(users) == 0 or len(users) != len(positions):
            raise DataError(
                f"the prompt feed got {len(users)} users and {len(positions)} positions; it needs one of "
                "each per example, and one example at least: give a longer log, or prompts a larger part by "
                "data.split"
            )
        self._users, self._positions, self._seed = users, positions, seed
        self._enter(epoch=0, cursor=0)

    @property
    def epoch(self) -> int:
        """Passes over the examples that are complete."""
        return self._epoch

    @property
    def cursor(self) -> int:
        """Examples of this epoch that were handed out."""
        return self._cursor

    def draw(self) -> tuple[int, int]:
        """The next example, `(user, position)`."""
        if self._cursor == len(self._order):
            self._enter(epoch=self._epoch + 1, cursor=0)
        row = self._order[self._cursor]
        self._cursor += 1
        return int(self._users[row]), int(self._positions[row])

    def example(self, index: int) -> tuple[int, int]:
        """The example that is drawn as number `index` (from 0) of all epochs, `(user, position)`."""
        epoch, place = divmod(index, len(self._users))
        order = self._order if epoch == self._epoch else self._order_of(epoch)
        return int(self._users[order[place]]), int(self._positions[order[place]])

    def snapshot(self) -> dict[str, Any]:
        """The place in the order, as JSON-able values."""
        return {
            "seed": self._seed,
            "examples": len(self._users),
            "epoch": self._epoch,
            "cursor": self._cursor,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go to the place that `snapshot` returned.

        Raises:
            RunError: the snapshot belongs to another seed or another number of examples, hence to another
                order.
        """
        for field, mine in (("seed", self._seed), ("examples", len(self._users))):
            if snapshot[field] != mine:
                raise RunError(
                    f"the checkpoint's prompt feed has {field} {snapshot[field]}, this run has {mine}: "
                    "resume with the data and the seed of the checkpoint, or start a new run"
                )
        self._enter(epoch=snapshot["epoch"], cursor=snapshot["cursor"])

    def rewind(self) -> None:
        """Go back to the very first example."""
        self._enter(epoch=0, cursor=0)

    def _enter(self, *, epoch: int, cursor: int) -> None:
        self._epoch, self._cursor = epoch, cursor
        self._order = self._order_of(epoch)

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._users))
