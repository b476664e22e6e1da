"""A tiny catalogue, and stand-ins for the engine and the ranker, for tests of the rollout side without
vLLM.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sluice.actors.engines.engine import GenerateRequest, Generation
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import PackedWeights, pack_weights
from sluice.learner.ranker.output import RankerOutput

# Eight items of three levels with two codes each: item row i has the bits of i as its codes.
CODES = np.asarray([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=np.int32)
LAYOUT = TokenLayout.fresh((2, 2, 2))  # tokens: level 0 = 3, 4; level 1 = 5, 6; level 2 = 7, 8


class TinyDataset:
    """Every user u has the sequence u, u+1, ... (mod 8) of eight items."""

    codes = CODES

    def __init__(self, *, exclude_seen: bool = True, max_history: int = 3) -> None:
        self.settings = DataSettings(exclude_seen=exclude_seen, max_history=max_history)

    def history(self, user: int, position: int, limit: int | None) -> np.ndarray:
        items = self.seen(user, position)
        return items if limit is None else items[-limit:]

    def seen(self, user: int, position: int) -> np.ndarray:
        return (np.arange(position, dtype=np.int32) + user) % 8

    def target(self, user: int, position: int) -> int:
        return (user + position) % 8

    def logged_rewards(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return (10 * users + positions).astype(np.float32)

    def item_shares(self, part: str) -> np.ndarray:
        return (np.arange(8) / 28).astype(np.float32)


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` distinct (user, position) pairs."""
    return np.arange(count, dtype=np.int32) // 4, np.arange(count, dtype=np.int32) % 4 + 1


class FakeEngine:
    """Each step finishes the oldest `per_step` requests with the items after the target's row as candidates.

    While `stall_while` names a file that does not exist, groups after the first `stall_after` are never
    finished.
    """

    def __init__(
        self,
        *,
        candidates: int = 2,
        per_step: int = 4,
        stall_after: int | None = None,
        stall_while: str | None = None,
        fail_at: int | None = None,
    ) -> None:
        self.version = self.catalogue_version = 0
        self.closed = False
        self.forgotten = 0
        self.waiting: list[GenerateRequest] = []
        self.loaded: list[int] = []
        self._candidates, self._per_step, self._fail_at = candidates, per_step, fail_at
        self._stall_after, self._stall_while = stall_after, stall_while
        self._finished = self.steps = 0

    @property
    def in_flight(self) -> int:
        return len(self.waiting)

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        self.waiting.extend(requests)

    def step(self) -> list[Generation]:
        self.steps += 1
        if self.steps == self._fail_at:
            raise MemoryError("the engine ran out of memory")
        if self._stall_after is not None and self._finished >= self._stall_after:
            if not Path(self._stall_while).exists():
                return []
            self._stall_after = None
        done, self.waiting = self.waiting[: self._per_step], self.waiting[self._per_step :]
        self._finished += len(done)
        return [self._generation(request) for request in done]

    def load_weights(self, weights: PackedWeights) -> float:
        self.version = weights.version
        self.loaded.append(weights.version)
        return 0.25

    def forget(self) -> None:
        self.forgotten += 1

    def load_catalogue(self, vocabulary: Vocabulary) -> float:
        self.catalogue_version = vocabulary.version
        return 0.5

    def close(self) -> None:
        self.closed = True

    def _generation(self, request: GenerateRequest) -> Generation:
        lease = int(request.request_id.split("-")[0])
        items = (lease + np.arange(self._candidates)) % 8
        return Generation(
            request_id=request.request_id,
            tokens=LAYOUT.encode(CODES[items]),
            log_probs=np.full((self._candidates, 3), -0.5, dtype=np.float32),
            version_min=self.version,
            version_max=self.version,
            catalogue_version=self.catalogue_version,
        )


class RowRanker:
    """Scores item i of a history of n items as i + n / 100."""

    version = "row-1"

    def __init__(self, dataset: object = None, scale: float = 1.0) -> None:
        self.scale = scale
        self.calls: list[int] = []

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        self.calls.append(len(histories))
        lengths = np.asarray([len(history) for history in histories], dtype=np.float32)[:, None]
        return np.where(candidates < 0, np.nan, self.scale * candidates + lengths / 100).astype(np.float32)


class PredictingRanker(RowRanker):
    """Its spread of item i is i / 10, its value 10 i."""

    def predict(self, histories: list[np.ndarray], candidates: np.ndarray) -> RankerOutput:
        spread, values = (np.where(candidates < 0, np.nan, factor * candidates) for factor in (0.1, 10.0))
        return RankerOutput.of(self.score(histories, candidates), spread, values)


class BrokenRanker(RowRanker):
    """Always fails."""

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("no scores today")


def weights_at(version: int) -> PackedWeights:
    """Weights of no policy, for engines that look at the version only."""
    return pack_weights([("w", torch.ones(4))], version)
