"""Batches made ready while the step before them is trained on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.batches.sources import BatchSource

Batch = tuple[LoggedBatch, dict[str, float]]


class Prefetched:
    """A batch source that waits for, fetches and collates the next step's share in a thread.

    The groups of that step are allotted earlier than they would be, but at the weight version that the
    learner will train on them with, so the staleness bound means what it meant. Until they are trained on, a
    checkpoint counts them as outstanding.
    """

    def __init__(self, source: BatchSource, *, steps: int, next_version: Callable[[int, int], int]) -> None:
        """Draw from `source`, up to step `steps` - 1.

        Args:
            source: whose `next` may be called from a thread, one call at a time.
            steps: of the run; nothing is fetched beyond them.
            next_version: the learner's weight version after a step, from (step, its version before).
        """
        self._source, self._steps, self._next_version = source, steps, next_version
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, int, Future[Batch]] | None = None

    def next(self, step: int, learner_version: int) -> Batch:
        """The worker's share of a step, which was asked for when the step before was handed out."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] != (step, learner_version):
            raise RuntimeError(
                f"step {step} at weight version {learner_version} was asked for, but {ahead[:2]} was fetched"
            )
        future = (
            ahead[2] if ahead is not None else self._thread.submit(self._source.next, step, learner_version)
        )
        batch = future.result()
        if step + 1 < self._steps:
            version = self._next_version(step, learner_version)
            self._ahead = (step + 1, version, self._thread.submit(self._source.next, step + 1, version))
        return batch

    def acknowledge(self, step: int) -> None:
        """The source's."""
        self._source.acknowledge(step)

    def snapshot(self) -> dict[str, Any]:
        """The source's, in which a step that was fetched ahead is still outstanding."""
        return self._source.snapshot()

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """The source's."""
        self._source.restore(snapshot)
