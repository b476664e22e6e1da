"""The catalogue board: where the newest version of the catalogue is (`sluice.actors.boards.version_board`).
Whoever changes the catalogue publishes; rollout actors and learner workers take it up. Version 0 is the one
that the run started with.

A version lies in the object store once per node, and its arrays are used there without a copy. It carries the
tries of a few versions before it: a learner that missed one can still mask the groups that were generated
with it.
"""

from typing import Any

import ray

from sluice.actors.boards.version_board import VersionBoard, VersionSource
from sluice.actors.calls import get_result
from sluice.catalog.trie.vocabulary import Vocabulary


class CatalogueBoard(VersionBoard):
    """The board. Decorate with `ray.remote` where it is launched."""

    what = "catalogue"


class CataloguePublisher:
    """The side that changes the catalogue; one at a time."""

    def __init__(self, handle: Any, vocabulary: Vocabulary, *, timeout_s: float = 60.0) -> None:
        """`vocabulary` is the catalogue that the run started with, version 0 of it on the board."""
        self._handle, self._timeout_s = handle, timeout_s
        self.newest = vocabulary

    def publish(self, vocabulary: Vocabulary) -> None:
        """Put a later version into the object store once and announce it.

        Raises:
            DataError: it is no later version of the newest.
            RunError: the board has a later one from somebody else, or is gone.
        """
        vocabulary = vocabulary.after(self.newest)
        reference = self._handle.publish.remote(
            vocabulary.version, [ray.put(vocabulary)], vocabulary.trie.nbytes
        )
        get_result(reference, f"the catalogue board (publish version {vocabulary.version})", self._timeout_s)
        self.newest = vocabulary


class CatalogueSource(VersionSource[Vocabulary]):
    """The side that uses it; polled between engine steps, or asked when a group is newer than the
    catalogue.
    """

    board = "catalogue board"
