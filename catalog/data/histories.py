"""From rows that hold a history and a target to the sequence of a user, in which no event stands twice.

Such rows overlap: that of the third event says (a, b -> c), that of the fourth (a, b, c -> d), or (b, c -> d)
where histories are cut. Each row is laid over what is known of its user so far, so that the items agree where
both say something:

    known            a b c
    row (b, c -> d)    b c d      goes on where the known sequence ends
    row (a, b -> c)  a b c        says what is known already
    row (c, d -> e)      c d e    goes on after an event that no row has as its target

A row that fits nowhere contradicts the rows before it and is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

FROM_HISTORY = -1  # owner of an event that no row has as its target


@dataclass
class JoinedHistory:
    """The sequence of one user, built row by row."""

    items: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # per event, the row whose target it is, or FROM_HISTORY
    repeated: int = 0  # rows that said nothing new
    _times: dict[int, int] = field(default_factory=dict)  # of rows

    def add(self, history: Sequence[int], target: int, row: int, time: int | None) -> bool:
        """Lay a row over the sequence; False when it fits nowhere, and nothing has changed then.

        Args:
            history: items before the target, oldest first.
            target: the item of the row.
            row: its number, not negative.
            time: of the target. Rows come in order of time. None: the log has no times, and the order of its
                rows is of no account.
        """
        window = [*history, target]
        start = self._place(window, time)
        if start is None:
            return False
        place, end = start + len(history), len(self.items)
        if place >= end:
            new = window[end - start :]
            self.items += new
            self.owners += [FROM_HISTORY] * len(new)
        if self.owners[place] == FROM_HISTORY:
            self.owners[place] = row
        else:
            self.repeated += 1
        if start < 0:
            self.items[:0] = window[:-start]
            self.owners[:0] = [FROM_HISTORY] * -start
        if time is not None:
            self._times[row] = time
        return True

    def next_owned(self) -> list[int]:
        """Per event, the row whose target it is, else that of the next event that is a target."""
        rows, row = [], FROM_HISTORY
        for owner in reversed(self.owners):
            row = row if owner == FROM_HISTORY else owner
            rows.append(row)
        return rows[::-1]

    def _place(self, window: list[int], time: int | None) -> int | None:
        """Where the window begins in the sequence (negative: before it); None: nowhere."""
        end = len(self.items)
        if not end:
            return 0
        going_on = end + 1 - len(window)  # the target comes right after what is known
        if going_on < end and self._agrees(window, going_on):
            return going_on
        for start in range(going_on - 1, -len(window), -1):
            if self._agrees(window, start) and self._may_be_at(start + len(window) - 1, time):
                return start
        # Events between what is known and the target: the longest overlap.
        return next((start for start in range(going_on + 1, end) if self._agrees(window, start)), None)

    def _agrees(self, window: list[int], start: int) -> bool:
        first, last = max(0, start), min(len(self.items), start + len(window))
        return self.items[first:last] == window[first - start : last - start]

    def _may_be_at(self, place: int, time: int | None) -> bool:
        """Whether a target at this time can be the known event at `place`."""
        if time is None:
            return True
        owner = next(owner for owner in self.owners[place:] if owner != FROM_HISTORY)
        return self._times[owner] == time


def join_rows(
    histories: Sequence[Sequence[int]], targets: Sequence[int], times: Sequence[int] | None
) -> tuple[JoinedHistory, list[int]]:
    """The sequence of a user with n rows, and which rows contradict those before.

    `times` `[n]` go up. None: the rows come in any order, and each is tried again once more is known.
    """
    joined, waiting = JoinedHistory(), list(range(len(targets)))
    while waiting:
        left = [
            row
            for row in waiting
            if not joined.add(histories[row], targets[row], row, None if times is None else times[row])
        ]
        if times is not None or len(left) == len(waiting):
            return joined, left
        waiting = left
    return joined, []
