"""The start's lists for held-out prompts, each with the ranker's scores of its items.

The lists are those that the start is judged by: constrained beams, by log p(item | history) of the plain
policy, without what the user has had where the data set says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.collate import collate_logged
from sluice.learner.decoding.tree import TreeDecoder
from sluice.learner.ranker.contract import Ranker, ask_score, check_scores
from sluice.learner.settings import EvaluationSettings

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class ScoredLists:
    """The lists of n prompts, W places each."""

    users: np.ndarray  # int32 [n]
    targets: np.ndarray  # int32 [n] item rows, what was logged
    items: np.ndarray  # int32 [n, W] item rows, -1: no item
    log_probs: np.ndarray  # float64 [n, W] nats, -inf where there is no item
    scores: np.ndarray  # float64 [n, W], the ranker's, NaN where there is no item

    def __len__(self) -> int:
        return len(self.users)


def list_start(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    dataset: Dataset,
    examples: Examples,
    settings: EvaluationSettings,
    ranker: Ranker,
    progress: Progress,
) -> ScoredLists:
    """Decode n prompts with `settings.beam_width` places and ask the ranker about every place.

    `progress` is told how many prompts are done.

    Raises:
        RankerError: a score breaks the contract of rankers.
    """
    decoder = TreeDecoder(model, vocabulary)
    held = Decoding(kind="beam", candidates=settings.beam_width, constrained=True)
    parts: list[tuple[np.ndarray, ...]] = []
    for first in range(0, len(examples), settings.batch_size):
        rows = slice(first, first + settings.batch_size)
        batch = Examples(users=examples.users[rows], positions=examples.positions[rows])
        pairs = list(zip(batch.users.tolist(), batch.positions.tolist(), strict=True))
        logged = collate_logged(dataset, batch, vocabulary)
        excluded = [dataset.seen(*pair) for pair in pairs] if dataset.settings.exclude_seen else None
        beams = decoder.beams(decoder.prefill(logged.history_BT, logged.history_lengths_B), held, excluded)
        possible = np.isfinite(beams.log_probs_BW)
        items = np.where(possible, vocabulary.trie.lookup(beams.tokens_BWL), -1).astype(np.int32)
        histories = [dataset.history(*pair, dataset.settings.max_history) for pair in pairs]
        scores = check_scores(items, ask_score(ranker, histories, items, batch.users))
        targets = np.asarray([dataset.target(*pair) for pair in pairs], dtype=np.int32)
        parts.append((targets, items, np.where(possible, beams.log_probs_BW, -np.inf), scores))
        progress(first + len(batch))
    targets, items, log_probs, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return ScoredLists(
        users=examples.users,
        targets=targets,
        items=items,
        log_probs=log_probs.astype(np.float64),
        scores=scores.astype(np.float64),
    )
