"""Prompts that were with an actor whenever it died, hung or got no scores: is one of them the cause?

The last time before a prompt is given up it is lent alone, to an actor that has nothing else. So one that
crashes an engine takes only itself along, and its companions come through.
"""

from collections import deque
from collections.abc import Iterable
from typing import Literal

from sluice.actors.queue.ledger_entries import LedgerEntry, PromptState

_KEPT = 20  # sentences
Fate = Literal["lend", "lend alone", "later", "give up"]


class Suspects:
    """The prompts in flight that have failed nearly too often."""

    def __init__(self, max_failures: int) -> None:
        self._most = max_failures
        self._ids: set[int] = set()
        self.given_up: deque[str] = deque(maxlen=_KEPT)

    def note_loss(self, entry: LedgerEntry) -> None:
        """It is about to be taken back: from whoever had it and did not finish it, or later."""
        if entry.state is not PromptState.LEASED:
            return
        entry.failures += 1
        if entry.failures >= self._most - 1:
            self._ids.add(entry.lease_id)

    def forget(self, entry: LedgerEntry) -> None:
        """It has left the ledger."""
        self._ids.discard(entry.lease_id)

    def clear(self) -> None:
        """All have left it."""
        self._ids.clear()

    def occupy(self, actor: str, leased: Iterable[LedgerEntry]) -> bool:
        """Whether the actor has one of them, and is to get nothing beside it."""
        return bool(self._ids) and any(e.actor == actor and e.lease_id in self._ids for e in leased)

    def fate(self, entry: LedgerEntry, actor: str, leased: Iterable[LedgerEntry]) -> Fate:
        """What becomes of the next prompt in line when `actor` asks."""
        if entry.lease_id not in self._ids:
            return "lend"
        if entry.failures >= self._most:
            return "give up"
        return "later" if any(e.actor == actor for e in leased) else "lend alone"

    def give_up(self, entry: LedgerEntry) -> str:
        """Note in `given_up`, and return, why a prompt is given up."""
        self.given_up.append(
            f"the prompt of user {entry.user} (a row of the data set) at position {entry.position} is given "
            f"up: {entry.failures} times whoever had it died, hung or got no scores, the last time with this "
            f"prompt alone (queue.max_prompt_failures = {self._most})"
        )
        return self.given_up[-1]
