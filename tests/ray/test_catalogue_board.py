import time

import numpy as np
import pytest
import ray

from sluice.actors.boards.catalogue_board import CatalogueBoard, CataloguePublisher, CatalogueSource
from sluice.catalog.errors import DataError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from tests.ray.conftest import WAIT_S

pytestmark = pytest.mark.ray

CODES = np.stack(np.unravel_index(np.random.default_rng(0).permutation(2**18)[:20000], (64, 64, 64)), axis=1)


class Reader:
    """An actor of the node that uses the catalogue."""

    def __init__(self, board):
        self.source = CatalogueSource(board)

    def items(self):
        """Live items, the versions known, and whether the arrays are the object store's own (and so
        read-only).
        """
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = self.source.poll(0)
            if found is not None:
                versions = [found.version, *(trie.version for trie in found.earlier)]
                return (
                    len(found.trie.lookup(found.item_tokens[:5])),
                    versions,
                    not found.trie.token.flags.writeable,
                )
        raise AssertionError("no catalogue came")


@pytest.fixture
def start():
    return Vocabulary.of(CODES, TokenLayout.fresh((64, 64, 64)))


def test_a_version_arrives_in_the_object_stores_own_memory(launch, start):
    board = launch(CatalogueBoard, {"max_task_retries": -1, "max_concurrency": 1000})
    publisher = CataloguePublisher(board, start)
    publisher.publish(start.changed(retire=np.array([3])))
    publisher.publish(publisher.newest.changed(retire=np.array([5])))
    reader = launch(Reader, {}, board)
    assert ray.get(reader.items.remote(), timeout=WAIT_S) == (5, [2, 1, 0], True)
    with pytest.raises(DataError, match="version 1 can't replace version 2"):
        publisher.publish(start.changed(retire=np.array([3])))
