"""From generated candidates to rollout groups: distractors, the question to the ranker, the finished groups.
All pure.

A batch is the prompts of one lease call: what other prompts of the batch generated is where a prompt's
distractors come from (docs/algorithms.md, Discriminability).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.actors.engines.engine import Generation
from sluice.actors.queue.leases import Lease
from sluice.actors.settings import DistractorDraw
from sluice.catalog.data.dataset import Examples
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import RunError
from sluice.catalog.gaps import Gaps
from sluice.catalog.rollout_group import RolloutGroup
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.ranker.output import RankerOutput

_MIDDLE_OF = 4  # times as many distractors as are kept are drawn, for draw ranker_middle
_RAREST_SHARE = 1e-6  # what an item counts that nobody has consumed


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A leased prompt, read from the data set."""

    lease: Lease
    history: np.ndarray  # [n] int32 item rows, oldest first, as the policy is shown them
    whole_history: np.ndarray  # without the gaps of `learner.item_dropout`, as the ranker is shown it
    excluded: np.ndarray  # [E] int32 item rows that are no candidates and no distractors of this prompt
    target_item: int


def leaves_enough(prompt: Prompt, vocabulary: Vocabulary, decoding: Decoding) -> bool:
    """Whether constrained decoding has as many items to choose from for a prompt as it has to draw."""
    if not decoding.constrained:
        return True
    left: int = vocabulary.trie.items_without(prompt.excluded)
    return left >= decoding.distinct


def read_prompt(lease: Lease, dataset: Any, gaps: Gaps) -> Prompt:
    """The prompt of a lease; with `data.exclude_seen` it excludes what the user had before, gaps or not.

    A ground truth that the user takes again is not excluded: its log-prob and those of the candidates, which
    the gate compares, are then normalised over the same items.
    """
    user, position = lease.user, lease.position
    target, excluded = int(dataset.target(user, position)), np.empty(0, dtype=np.int32)
    if dataset.settings.exclude_seen:
        seen = dataset.seen(user, position)
        excluded = seen[seen != target]
    history = dataset.history(user, position, dataset.settings.max_history)
    return Prompt(
        lease=lease,
        history=gaps.cut(history, lease.lease_id),
        whole_history=history,
        excluded=excluded,
        target_item=target,
    )


@dataclass(frozen=True, kw_only=True)
class UnscoredGroups:
    """B prompts with their K candidates and up to J distractors, and what the ranker is asked about them."""

    prompts: Sequence[Prompt]
    generations: Sequence[Generation]
    generate_s: Sequence[float]
    candidate_items: np.ndarray  # [B, K] int32 item rows, -1: no item, or an excluded one
    consumed: np.ndarray  # [B] candidates that are excluded items
    distractor_items: np.ndarray  # [B, J] int32 item rows, -1: the batch offered fewer
    keep: int  # distractors of a prompt that are kept, those in the middle of the ranker's order
    # [B, 1 + K + J] int32 item rows, each once per prompt, the ground truth first; -1 = padding
    items_to_score: np.ndarray
    # [B, 1 + K + J] columns of `items_to_score`: of ground truth, candidates, distractors; 1 + K + J: none
    places: np.ndarray

    @property
    def histories(self) -> list[np.ndarray]:
        """B times `[n]` int32 item rows, the other half of the ranker's question."""
        return [prompt.whole_history for prompt in self.prompts]

    @property
    def examples(self) -> Examples:
        """The B prompts by user and position."""
        return Examples(
            users=np.asarray([prompt.lease.user for prompt in self.prompts], dtype=np.int32),
            positions=np.asarray([prompt.lease.position for prompt in self.prompts], dtype=np.int32),
        )


def assemble_groups(
    prompts: Sequence[Prompt],
    generations: Sequence[Generation],
    generate_s: Sequence[float],
    *,
    vocabulary: Vocabulary,
    distractors: int,
    seed: int,
    draw: DistractorDraw = "uniform",
    shares: np.ndarray | None = None,
) -> UnscoredGroups:
    """Candidate items by the trie each was generated with, and up to J `distractors` for each prompt.

    A candidate that is an excluded item counts as a hallucination. A prompt's distractors are drawn without
    replacement from the distinct items that the *other* prompts generated, less its ground truth, its own
    candidates and its excluded items, as `draw` says. The draw depends on `seed`, the batch's lease ids, what
    was generated and the items' `shares` `[N]` of the interactions alone, which draw popularity needs.

    Raises:
        RunError: the engine returned groups of different shapes, or sequences of the wrong length.
    """
    shapes = {generation.tokens.shape for generation in generations}
    levels = vocabulary.layout.levels
    if len(shapes) != 1 or next(iter(shapes))[1] != levels:
        raise RunError(
            f"the engine returned groups of shapes {sorted(shapes)}; all must be [K, {levels}], one token "
            f"per level"
        )
    versions = np.asarray([generation.catalogue_version for generation in generations])
    generated = vocabulary.lookup(np.stack([generation.tokens for generation in generations]), versions)
    excluded = [prompt.excluded for prompt in prompts]
    candidate_items = np.where(_in_rows(generated, excluded), -1, generated)
    target_items = np.asarray([[prompt.target_item] for prompt in prompts], dtype=np.int32)
    generator = np.random.default_rng([seed, *(prompt.lease.lease_id for prompt in prompts)])
    drawn = _MIDDLE_OF * distractors if draw == "ranker_middle" else distractors
    weights = shares if draw == "popularity" else None
    distractor_items = _distractors(target_items, candidate_items, excluded, drawn, generator, weights)
    items_to_score, places = _distinct(
        np.concatenate([target_items, candidate_items, distractor_items], axis=1)
    )
    return UnscoredGroups(
        prompts=prompts,
        generations=generations,
        generate_s=generate_s,
        candidate_items=candidate_items,
        consumed=((candidate_items < 0) & (generated >= 0)).sum(axis=1),
        distractor_items=distractor_items,
        keep=distractors,
        items_to_score=items_to_score,
        places=places,
    )


def score_groups(
    unscored: UnscoredGroups, output: RankerOutput, *, ranker_version: str, score_s: float
) -> list[RolloutGroup]:
    """Rollout groups from the ranker's answer `[B, 1 + K + J]` to what it was asked."""
    scores, spread, values = (
        _at(column, unscored.places) for column in (output.scores, output.spread, output.values)
    )
    own = slice(1, 1 + unscored.candidate_items.shape[1])
    nothing = np.empty(0, dtype=np.float32)
    groups = []
    for row, (prompt, generation) in enumerate(zip(unscored.prompts, unscored.generations, strict=True)):
        of_distractors = scores[row, own.stop :]
        chosen = _middle(of_distractors, unscored.keep)
        inclusion = generation.inclusion_log_probs
        groups.append(
            RolloutGroup(
                lease_id=prompt.lease.lease_id,
                user=prompt.lease.user,
                position=prompt.lease.position,
                history=prompt.history,
                excluded=prompt.excluded,
                target_item=prompt.target_item,
                candidate_tokens=generation.tokens,
                behaviour_log_probs=generation.log_probs,
                inclusion_log_probs=nothing if inclusion is None else inclusion,
                candidate_items=unscored.candidate_items[row],
                consumed=int(unscored.consumed[row]),
                candidate_scores=scores[row, own],
                target_score=float(scores[row, 0]),
                candidate_spread=spread[row, own],
                target_spread=float(spread[row, 0]),
                candidate_values=values[row, own],
                target_value=float(values[row, 0]),
                distractor_items=unscored.distractor_items[row, chosen],
                distractor_scores=of_distractors[chosen],
                version_min=generation.version_min,
                version_max=generation.version_max,
                ranker_version=ranker_version,
                trust=None if output.trust is None else float(output.trust[row]),
                generate_s=unscored.generate_s[row],
                score_s=score_s,
                catalogue_version=generation.catalogue_version,
            )
        )
    return groups


def _in_rows(items: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """bool, shaped like the items `[B, W]`: the item is in the set of its row."""
    return np.stack([np.isin(row, members) for row, members in zip(items, sets, strict=True)])


def _distractors(
    target_items: np.ndarray,
    candidate_items: np.ndarray,
    excluded: Sequence[np.ndarray],
    count: int,
    generator: np.random.Generator,
    shares: np.ndarray | None,
) -> np.ndarray:
    """`[B, J]`: the items with the smallest of random keys, among those that a prompt may be given."""
    generated, places = np.unique(np.append(candidate_items, -1), return_inverse=True)
    # Without its own candidates, what the whole batch generated is what the other prompts did.
    shape = (len(candidate_items), len(generated))
    if shares is None:
        keys = generator.random(shape)
    else:  # the first of exponential clocks that run as fast as the items are popular
        known = np.where(generated < len(shares), shares.take(generated, mode="clip"), 0.0)
        keys = generator.exponential(size=shape) / np.maximum(known, _RAREST_SHARE)
    np.put_along_axis(keys, places[:-1].reshape(candidate_items.shape), np.inf, axis=1)
    keys[(generated == target_items) | (generated < 0)] = np.inf
    keys[_in_rows(np.broadcast_to(generated, keys.shape), excluded)] = np.inf
    drawn = np.full((len(keys), count), -1, dtype=np.int32)
    width = min(count, len(generated))
    chosen = np.argpartition(keys, width - 1, axis=1)[:, :width]
    drawn[:, :width] = np.where(np.isinf(np.take_along_axis(keys, chosen, axis=1)), -1, generated[chosen])
    return drawn


def _middle(scores: np.ndarray, keep: int) -> np.ndarray:
    """The places, in ascending order, of the `keep` middle ones of the scores that are not NaN."""
    order = np.argsort(scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    first = max(0, len(order) - keep) // 2
    return np.sort(order[first : first + keep])


def _distinct(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's distinct items of `[B, W]` in the order in which they appear, padded with -1, and the column
    that each item has there; W for -1, no item.
    """
    width = items.shape[1]
    first = (items[:, :, None] == items[:, None, :]).argmax(axis=2)
    column = np.cumsum((first == np.arange(width)) & (items >= 0), axis=1) - 1
    places = np.where(items < 0, width, np.take_along_axis(column, first, axis=1))
    distinct = np.full((len(items), width + 1), -1, dtype=np.int32)
    np.put_along_axis(distinct, places, items, axis=1)
    return distinct[:, :width], places


def _at(column: np.ndarray, places: np.ndarray) -> np.ndarray:
    """An answer's values at the places, NaN for no item."""
    nowhere = np.full((len(column), 1), np.nan, dtype=np.float32)
    return np.take_along_axis(np.concatenate([column, nowhere], axis=1, dtype=np.float32), places, axis=1)
