"""Where a learner worker's batches come from: the rollout queue, or the logs alone.

Both hand out numbered steps, want an acknowledgement after the optimizer step, and give a snapshot for the
checkpoint from which they go on without skipping or repeating a prompt.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.decoding import Decoding
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.batches.collate import collate_groups, collate_logged
from sluice.learner.batches.strata import popularity_cuts


def prompts_of(dataset: Dataset, recent: int | None) -> Examples:
    """The examples that post-training draws prompts from: those of the fresh part (of the pretrain part where
    there is none), all or each user's last `recent`.
    """
    examples = dataset.examples(dataset.prompt_part)
    if recent is None:
        return examples
    last = dataset.lengths_until(dataset.prompt_part)[examples.users] - 1
    keep = examples.positions > last - recent
    return Examples(users=examples.users[keep], positions=examples.positions[keep])


def open_prompts(data_directory: str | Path, recent: int | None, leaving: int = 0) -> Examples:
    """`prompts_of` a prepared directory, for an actor that opens it itself: those that leave at least so many
    items that the user has not had before, where `data.exclude_seen` asks for such.
    """
    dataset = Dataset.open(data_directory)
    examples = prompts_of(dataset, recent)
    if not dataset.settings.exclude_seen:
        return examples
    most = len(dataset.item_ids) - leaving  # items that a user may have had
    # A user has had no more items than interactions.
    doubtful = np.flatnonzero(examples.positions > most)
    short = [row for row in doubtful.tolist() if _items_had(dataset, examples, row) > most]
    return Examples(users=np.delete(examples.users, short), positions=np.delete(examples.positions, short))


def _items_had(dataset: Dataset, examples: Examples, row: int) -> int:
    """Items that the user of an example had before it, without its target."""
    user, position = int(examples.users[row]), int(examples.positions[row])
    seen = np.unique(dataset.seen(user, position))
    return int((seen != dataset.target(user, position)).sum())


_CATALOGUE_S = 60.0  # for a catalogue that an engine already has


class RolloutQueue(Protocol):
    """What the learner needs of the queue's client (`sluice.actors.queue.client.QueueClient`)."""

    def pull(self, step: int, rank: int, world: int, count: int, learner_version: int) -> list[Any]:
        """`count` record batches for this rank's share of `step`."""

    def ack(self, step: int, rank: int) -> object:
        """The optimizer step on that share is done."""

    def snapshot(self) -> dict[str, Any]:
        """State for the checkpoint."""

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go on from a snapshot; None is the very beginning."""


class Catalogues(Protocol):
    """What the learner needs of the catalogue board
    (`sluice.actors.boards.catalogue_board.CatalogueSource`).
    """

    def newest(self, current_version: int, wait_s: float) -> Vocabulary | None:
        """The newest version of the catalogue above the current one, waited for; None when there is none."""


class BatchSource(Protocol):
    """One worker's batches."""

    def next(self, step: int, learner_version: int) -> tuple[LoggedBatch, dict[str, float]]:
        """The worker's share of a step, and figures about it for the metrics."""

    def acknowledge(self, step: int) -> None:
        """The optimizer step is done."""

    def snapshot(self) -> dict[str, Any]:
        """State for the checkpoint; asked of rank 0 after every rank has acknowledged."""

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Go on from a snapshot; called by rank 0 before any worker asks for a batch."""


class QueueSource:
    """Rollout groups from the queue."""

    def __init__(
        self,
        queue: RolloutQueue,
        dataset: Dataset,
        vocabulary: Vocabulary,
        *,
        rank: int,
        world: int,
        share: int,
        decoding: Decoding,
        catalogues: Catalogues | None = None,
    ) -> None:
        self._queue, self._dataset, self._vocabulary, self._catalogues = (
            queue,
            dataset,
            vocabulary,
            catalogues,
        )
        self._rank, self._world, self._share = rank, world, share
        self._decoding = decoding
        self._cuts = popularity_cuts(dataset.item_shares("fresh"))

    def next(self, step: int, learner_version: int) -> tuple[GroupBatch, dict[str, float]]:
        """Waits for the queue to allot the step."""
        groups = self._queue.pull(step, self._rank, self._world, self._share, learner_version)
        oldest = np.array([group.column("version_min")[0].as_py() for group in groups])
        seconds = {
            name: float(np.mean([group.column(name)[0].as_py() for group in groups]))
            for name in ("generate_s", "score_s")
        }
        self._follow_catalogue(max(group.column("catalogue_version")[0].as_py() for group in groups))
        batch = collate_groups(groups, self._dataset, self._vocabulary, self._decoding, self._cuts)
        consumed = sum(group.column("consumed")[0].as_py() for group in groups)
        figures = {
            "staleness": float(learner_version - oldest.mean()),
            "consumed_share": consumed / batch.candidate_items_BK.numel(),
            "repeated_share": 1 - float(batch.distinct_BK.double().mean()),
            **seconds,
        }
        if batch.inclusion_log_probs_BK is not None:
            figures["inclusion"] = float(batch.inclusion_log_probs_BK.exp().mean())
        return batch, figures

    def _follow_catalogue(self, version: int) -> None:
        """Groups may be newer than the catalogue here, which nothing but a group makes out of date."""
        if self._catalogues is None or version <= self._vocabulary.version:
            return
        newest = self._catalogues.newest(self._vocabulary.version, _CATALOGUE_S)
        if newest is not None:
            self._vocabulary = newest.after(self._vocabulary)

    def acknowledge(self, step: int) -> None:
        """Marks the share as trained."""
        self._queue.ack(step, self._rank)

    def snapshot(self) -> dict[str, Any]:
        """The queue's."""
        return self._queue.snapshot()

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """Restores the queue."""
        self._queue.restore(snapshot)


class LoggedSource:
    """Prompts with their logged targets, in the feed's order; what an objective without rollouts needs."""

    def __init__(
        self,
        dataset: Dataset,
        examples: Examples,
        vocabulary: Vocabulary,
        *,
        seed: int,
        rank: int,
        world: int,
        share: int,
        gaps: Gaps = NO_GAPS,
    ) -> None:
        self._dataset, self._vocabulary, self._gaps = dataset, vocabulary, gaps
        self._feed = PromptFeed(examples.users, examples.positions, seed=seed)
        self._rank, self._world, self._share = rank, world, share
        self._drawn = 0  # steps

    def next(self, step: int, learner_version: int) -> tuple[LoggedBatch, dict[str, float]]:
        """Every rank replays the same feed and keeps its own slice of each step."""
        size = self._world * self._share
        while self._drawn <= step:
            prompts = [self._feed.draw() for _ in range(size)]
            self._drawn += 1
        users, positions = np.array(prompts[self._rank :: self._world], dtype=np.int32).T
        examples = Examples(users=users, positions=positions)
        numbers = range(step * size + self._rank, (step + 1) * size, self._world)
        batch = collate_logged(self._dataset, examples, self._vocabulary, self._gaps, numbers)
        return batch, {"staleness": 0.0}

    def acknowledge(self, step: int) -> None:
        """Nothing is outstanding between steps."""

    def snapshot(self) -> dict[str, Any]:
        """Nothing: the feed is a function of its seed, and `next` replays it up to the step that it is asked
        for.
        """
        return {}

    def restore(self, snapshot: dict[str, Any] | None) -> None:
        """See `snapshot`."""
