"""The prompts in flight of the rollout ledger, each in one state, found by lease id, by state and by age."""

from collections import OrderedDict
from collections.abc import Iterator

from sluice.actors.queue.ledger_entries import LedgerEntry, PromptState


class PromptTable:
    """No method looks at more prompts than it gives."""

    def __init__(self) -> None:
        self._entries: dict[int, LedgerEntry] = {}
        # Ordered dicts, not dicts: taking the oldest entry of a dict walks over everything taken before it.
        # The leased ones lie in order of their deadlines.
        self._by_state: dict[PromptState, OrderedDict[int, LedgerEntry]] = {
            state: OrderedDict() for state in PromptState
        }
        self._queued_by_version: dict[int, set[int]] = {}  # version_min -> lease ids
        self.queued_bytes = 0

    def __getitem__(self, lease_id: int) -> LedgerEntry:
        return self._entries[lease_id]

    def __iter__(self) -> Iterator[LedgerEntry]:
        """All, by lease id."""
        return iter(sorted(self._entries.values(), key=lambda entry: entry.lease_id))

    def get(self, lease_id: int) -> LedgerEntry | None:
        """The prompt, or None when it is not in flight."""
        return self._entries.get(lease_id)

    def of(self, state: PromptState) -> OrderedDict[int, LedgerEntry]:
        """The prompts in a state, in the order in which they came into it. To be read, or reordered."""
        return self._by_state[state]

    def count(self, *states: PromptState) -> int:
        """Prompts in any of these states."""
        return sum(len(self._by_state[state]) for state in states)

    def queued_before(self, version: int) -> list[LedgerEntry]:
        """The queued groups with a token of weights older than `version`, by lease id."""
        old = [ids for own, ids in self._queued_by_version.items() if own < version]
        return [self._entries[lease_id] for lease_id in sorted(set().union(*old))]

    def insert(self, entry: LedgerEntry) -> None:
        """A new prompt, in the state that it is in."""
        self._entries[entry.lease_id] = entry
        self._by_state[entry.state][entry.lease_id] = entry

    def move(self, entry: LedgerEntry, state: PromptState) -> None:
        """Its group goes with the prompt from queued to pulled alone."""
        self._withdraw(entry)
        entry.state = state
        self._by_state[state][entry.lease_id] = entry
        if state is PromptState.QUEUED:
            self.queued_bytes += entry.finished.nbytes
            self._queued_by_version.setdefault(entry.finished.version_min, set()).add(entry.lease_id)
        elif state is not PromptState.PULLED:
            entry.push = None  # the reference must go, or the group's memory would stay

    def remove(self, entry: LedgerEntry) -> None:
        """It leaves."""
        self._withdraw(entry)
        del self._entries[entry.lease_id]

    def _withdraw(self, entry: LedgerEntry) -> None:
        del self._by_state[entry.state][entry.lease_id]
        if entry.state is PromptState.QUEUED:
            push = entry.finished
            self.queued_bytes -= push.nbytes
            same_version = self._queued_by_version[push.version_min]
            same_version.remove(entry.lease_id)
            if not same_version:
                del self._queued_by_version[push.version_min]
