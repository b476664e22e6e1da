"""What a rollout worker needs of the other actors."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sluice.actors.calls import Call
from sluice.actors.queue.leases import Lease, Push, PushReply
from sluice.catalog.data.dataset import Examples
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import UnverifiedWeights


class Queue(Protocol):
    """What the worker needs of the rollout queue (`sluice.actors.queue.lease_holder.LeaseHolder`)."""

    def lease(self, count: int) -> Call[tuple[Lease, ...]]:
        """Ask for prompts."""

    def put(
        self,
        leases: Sequence[Lease],
        records: pa.RecordBatch,
        versions: Sequence[tuple[int, int]],
        ranker_version: str = "",
    ) -> list[Push]:
        """Put groups into the object store."""

    def push(self, pushes: Sequence[Push]) -> Call[PushReply]:
        """Hand groups over."""

    def reject(self, leases: Sequence[Lease], reason: str, *, again: bool = False) -> Call[int]:
        """Give leases up, or `again` back to be issued once more."""

    def release(self, reason: str) -> Call[int]:
        """Hand back what is leased."""


class Scorer(Protocol):
    """What it needs of the ranker pool (`sluice.actors.ranker.pool.RankerClient`); the answer is a
    `RankerAnswer`.
    """

    def submit(self, histories: list[np.ndarray], candidates: np.ndarray, examples: Examples) -> Call[Any]:
        """Ask for scores, and for trust where the pool measures it."""


class Weights(Protocol):
    """What it needs of the weight board (`sluice.actors.boards.weight_board.WeightSource`)."""

    def at(self, version: int, wait_s: float) -> UnverifiedWeights | None:
        """These very weights, for leases that say by which they are to be served."""

    def poll(self, current_version: int) -> UnverifiedWeights | None:
        """Newer weights that have arrived."""


class Catalogues(Protocol):
    """What it needs of the catalogue board (`sluice.actors.boards.catalogue_board.CatalogueSource`)."""

    def poll(self, current_version: int) -> Vocabulary | None:
        """A newer catalogue that has arrived."""
