"""Full-catalogue evaluation of a policy: one target per example, decoded with beams from one prefill.

HR, NDCG and MRR come from constrained beams (items the user has consumed left out when the data set says so)
or, when `constrained` is off, from free beams, in which a sequence that is no item, or an item to leave out,
takes up a place.
Hallucination is always measured on free beams: decoded top-k sequences that are no item / decoded top-k
sequences.

Definition: docs/algorithms.md, Metrics.
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
from sluice.learner.evaluation.breadth import head_items, measure_breadth
from sluice.learner.evaluation.exposure import weigh_examples, weighted_means
from sluice.learner.ranking_metrics import per_user, rank_of
from sluice.learner.settings import EvaluationSettings

_DEFAULTS = EvaluationSettings()
TOP = 10  # of the lists that are kept and judged for hallucination


@dataclass(frozen=True, kw_only=True)
class UserResults:
    """The lists that n examples got, W places each; results of shards concatenate."""

    users: np.ndarray  # int32 [n]
    positions: np.ndarray  # int32 [n], of the target in the user's sequence
    ranks: np.ndarray  # int64 [n], 1-based, 0: target not in the list
    items: np.ndarray  # int32 [n, W], -1 where there is no item
    invalid: np.ndarray  # int64 [n], free top-TOP sequences that are no item

    @property
    def width(self) -> int:
        """W, the places of a list."""
        return int(self.items.shape[1])

    @property
    def top_items(self) -> np.ndarray:
        """int32 [n, TOP], the heads of the lists."""
        return self.items[:, :TOP]

    @classmethod
    def concatenate(cls, parts: list["UserResults"]) -> "UserResults":
        """One result of several shards, in order of user and position, each example once."""
        fields = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__
        }
        _, first = np.unique(np.stack([fields["users"], fields["positions"]]), axis=1, return_index=True)
        return cls(**{name: value[first] for name, value in fields.items()})

    def summary(self, dataset: Dataset, settings: EvaluationSettings = _DEFAULTS) -> dict[str, float]:
        """Means over the examples, hallucination, how broad the lists are, and how many examples of how many
        users there are.

        Where examples have propensities the means are there weighted, too (`exposure.weighted_means`).
        `settings` say what an example weighs.
        """
        weights = weigh_examples(dataset, self.users, self.positions, settings)
        means = {name: float(values.mean()) for name, values in per_user(self.ranks, self.width).items()}
        return {
            **means,
            **({} if weights is None else weighted_means(self.ranks, self.width, weights)),
            "hallucination": float(self.invalid.sum() / (len(self.users) * TOP)),
            **measure_breadth(self.top_items, head_items(dataset)),
            "examples": float(len(self.users)),
            "users": float(len(np.unique(self.users))),
        }


def sample_examples(examples: Examples, size: int | None, seed: int = 0) -> Examples:
    """A random subset of `size` examples, in their order; all when `size` is None or larger.

    The same seed gives the same subset.
    """
    if size is None or size >= len(examples.users):
        return examples
    chosen = np.sort(np.random.default_rng(seed).choice(len(examples.users), size=size, replace=False))
    return Examples(users=examples.users[chosen], positions=examples.positions[chosen])


def evaluate_policy(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    dataset: Dataset,
    examples: Examples,
    settings: EvaluationSettings,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> UserResults:
    """Decode every example in evaluation mode; the model's mode is left as it was.

    Args:
        model: the policy's causal LM.
        vocabulary: the catalogue in its tokens.
        dataset: histories and targets.
        examples: whom to evaluate on.
        settings: beam width, batch size, constrained or free.
        progress: called with examples done, their total, and no metrics.
    """
    was_training = model.training
    model.eval()
    try:
        decoder = TreeDecoder(model, vocabulary)
        lengths = np.minimum(examples.positions, dataset.settings.max_history)
        order = np.argsort(lengths, kind="stable")  # like lengths together: little padding
        parts, done = [], 0
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            batch = Examples(users=examples.users[rows], positions=examples.positions[rows])
            parts.append(_evaluate_batch(decoder, vocabulary, dataset, batch, settings))
            done += len(rows)
            if progress is not None:
                progress(done, len(order), {})
        return UserResults.concatenate(parts)
    finally:
        model.train(was_training)


def _evaluate_batch(
    decoder: TreeDecoder,
    vocabulary: Vocabulary,
    dataset: Dataset,
    examples: Examples,
    settings: EvaluationSettings,
) -> UserResults:
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    logged = collate_logged(dataset, examples, vocabulary)
    prefix = decoder.prefill(logged.history_BT, logged.history_lengths_B)
    free = decoder.beams(prefix, Decoding(kind="beam", candidates=settings.beam_width))
    free_items = vocabulary.trie.lookup(free.tokens_BWL)
    excluded = [dataset.seen(*pair) for pair in pairs] if dataset.settings.exclude_seen else None
    if settings.constrained:
        held = Decoding(kind="beam", candidates=settings.beam_width, constrained=True)
        ranked = decoder.beams(prefix, held, excluded)
        items = np.where(np.isfinite(ranked.log_probs_BW), vocabulary.trie.lookup(ranked.tokens_BWL), -1)
    else:
        items = free_items.copy()
        for row, seen in enumerate(excluded or []):
            items[row, np.isin(items[row], seen)] = -1
    lists = np.full((len(pairs), settings.beam_width), -1, dtype=np.int32)
    lists[:, : items.shape[1]] = items
    return UserResults(
        users=examples.users,
        positions=examples.positions,
        ranks=rank_of(np.asarray([dataset.target(*pair) for pair in pairs]), lists),
        items=lists,
        invalid=(free_items[:, :TOP] < 0).sum(axis=1),
    )
