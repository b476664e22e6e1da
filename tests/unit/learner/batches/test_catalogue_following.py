"""How a new version of the catalogue is taken up: by a rollout worker between steps, by the learner with a
group.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import RunError
from sluice.catalog.rollout_group import decode_group, encode_groups
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.sources import QueueSource
from tests.rollout_fakes import CODES, LAYOUT, FakeEngine, TinyDataset
from tests.unit.actors.rollout.test_worker import turn, worker
from tests.unit.learner.batches.test_collate import group

START = Vocabulary.of(CODES, LAYOUT)
NEXT = START.changed(retire=np.array([1]))


class Versions:
    """A board that hands out versions one after the other."""

    def __init__(self, *versions: Vocabulary):
        self.versions, self.asked = list(versions), []

    def poll(self, current_version: int) -> Vocabulary | None:
        self.asked.append(current_version)
        return self.versions.pop(0) if self.versions else None

    def newest(self, current_version: int, wait_s: float) -> Vocabulary | None:
        return self.poll(current_version)


class Groups:
    """A queue with one batch."""

    def __init__(self, *groups):
        self.groups = [encode_groups(one) for one in groups]

    def pull(self, step, rank, world, count, learner_version):
        return self.groups


def test_a_worker_swaps_between_steps_and_old_groups_keep_their_catalogue():
    parts = worker(engine=FakeEngine(per_step=1), exclude_seen=False)
    turn(parts, 3)  # the first batch is in the engine, one group of it done
    parts.worker._catalogues = Versions(NEXT)
    turn(parts, 8)
    assert parts.worker._catalogues.asked[:2] == [0, 1]
    assert parts.engine.catalogue_version == 1
    time = parts.worker.stats().time
    assert time["load_catalogue"] == 1.0
    assert "load_weights" not in time
    groups = [decode_group(push.reference) for push in parts.queue.ledger.allot(0, 0, 1, 4, 0)]
    assert [one.catalogue_version for one in groups] == [0, 1, 1, 1]
    # Group i has the items i and i + 1; item 1 is still an item to the group from before.
    assert [one.candidate_items.tolist() for one in groups] == [[0, 1], [-1, 2], [2, 3], [3, 4]]


def source(queue, versions):
    decoding = Decoding(candidates=2, constrained=True)
    return QueueSource(
        queue, TinyDataset(), START, rank=0, world=1, share=2, catalogues=versions, decoding=decoding
    )


def test_the_learner_fetches_the_catalogue_of_a_group_it_does_not_know():
    old = group(excluded=np.asarray([], dtype=np.int32))
    queue, versions = Groups(old, replace(old, lease_id=12, catalogue_version=1)), Versions(NEXT)
    learner = source(queue, versions)
    batch, _ = learner.next(0, 1)
    last = [torch.nonzero(batch.allowed_BSLV[row, 1, 2]).flatten().tolist() for row in range(2)]
    assert last == [[7, 8], [7]]  # item 1 = 3 5 8 is retired in version 1
    learner.next(1, 1)
    assert versions.asked == [0]


def test_a_catalogue_that_never_comes_is_an_error():
    queue = Groups(group(excluded=np.asarray([], dtype=np.int32), catalogue_version=1))
    for versions in (None, Versions()):
        with pytest.raises(RunError, match=r"catalogue version 1, known here are \[0\]"):
            source(queue, versions).next(0, 1)
