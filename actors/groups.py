"""From generated candidates to rollout groups: distractors, the ranker's request, the finished groups. Pure functions.

A batch is the prompts of one lease call: what other prompts of the batch generated is where a prompt's distractors
come from (algorithms section 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.engine import Generation
from actors.leases import Lease
from catalog.errors import RankerError, RunError
from catalog.rollout_group import RolloutGroup
from catalog.vocabulary import Vocabulary
from learner.assessment import Assessment


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A leased prompt, read from the data set."""

    lease: Lease
    history: np.ndarray  # [n] int32 item rows, oldest first
    excluded: np.ndarray  # [E] int32 item rows that constrained decoding leaves out
    target_item: int


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A prompt with its candidates and distractors, not yet scored."""

    prompt: Prompt
    generation: Generation
    generate_s: float
    candidate_items: np.ndarray  # [K] int32 item rows, -1: no item
    distractor_items: np.ndarray  # [<= M] int32 item rows


@dataclass(frozen=True, kw_only=True)
class RankerRequest:
    """What a batch of B prompts asks of the ranker."""

    histories: list[np.ndarray]  # B times [n] int32 item rows
    candidates: np.ndarray  # [B, 1 + K + M] int32 item rows, each once per prompt, the ground truth first; -1 = padding


def draw(
    prompts: Sequence[Prompt],
    generations: Sequence[Generation],
    generate_s: Sequence[float],
    *,
    vocabulary: Vocabulary,
    distractors: int,
    seed: int,
) -> list[Drawn]:
    """Candidate items by the trie each was generated with, and up to M `distractors` for each prompt.

    A prompt's distractors are drawn without replacement from the distinct items that the *other* prompts generated,
    less its ground truth and its own candidates. The draw depends on (seed, lease id) and the batch alone.

    Raises:
        RunError: the engine returned groups of different shapes, or sequences of the wrong length.
    """
    shapes = {generation.tokens.shape for generation in generations}
    levels = vocabulary.layout.levels
    if len(shapes) != 1 or next(iter(shapes))[1] != levels:
        raise RunError(
            f"the engine returned groups of shapes {sorted(shapes)}; all must be [K, {levels}], one token per level"
        )
    versions = np.asarray([generation.catalogue_version for generation in generations])
    items = vocabulary.lookup(np.stack([generation.tokens for generation in generations]), versions)  # [B, K]
    generated, places = np.unique(np.append(items, -1), return_inverse=True)  # -1 is first, whatever was generated
    places = places[:-1].reshape(items.shape)
    drawn = []
    for row, prompt in enumerate(prompts):
        # Without its own candidates, what the whole batch generated is what the other prompts did.
        others = generated != prompt.target_item
        others[0] = False
        others[places[row]] = False
        pool = generated[others]
        generator = np.random.default_rng([seed, prompt.lease.lease_id])
        chosen = generator.choice(pool, size=min(distractors, len(pool)), replace=False)
        drawn.append(
            Drawn(
                prompt=prompt,
                generation=generations[row],
                generate_s=generate_s[row],
                candidate_items=items[row],
                distractor_items=chosen.astype(np.int32),
            )
        )
    return drawn


def ranker_request(drawn: Sequence[Drawn], *, distractors: int) -> RankerRequest:
    """Each prompt's ground truth, candidates and distractors; an item that appears twice is asked for once."""
    width = 1 + len(drawn[0].candidate_items) + distractors
    candidates = np.full((len(drawn), width), -1, dtype=np.int32)
    for row, one in enumerate(drawn):
        asked = _asked(one)
        candidates[row, : len(asked)] = asked
    return RankerRequest(histories=[one.prompt.history for one in drawn], candidates=candidates)


def finish(
    drawn: Sequence[Drawn], assessment: Assessment, *, ranker_version: str, score_s: float
) -> list[RolloutGroup]:
    """Rollout groups from the answer `[B, 1 + K + M]` to `ranker_request`."""
    groups = []
    for row, one in enumerate(drawn):
        asked = _asked(one)
        score_of, spread_of, value_of = (
            _by_item(asked, column[row]) for column in (assessment.scores, assessment.spread, assessment.values)
        )
        generation = one.generation
        groups.append(
            RolloutGroup(
                lease_id=one.prompt.lease.lease_id,
                user=one.prompt.lease.user,
                position=one.prompt.lease.position,
                history=one.prompt.history,
                excluded=one.prompt.excluded,
                target_item=one.prompt.target_item,
                candidate_tokens=generation.tokens,
                behaviour_log_probs=generation.log_probs,
                inclusion_log_probs=(
                    np.empty(0, dtype=np.float32)
                    if generation.inclusion_log_probs is None
                    else generation.inclusion_log_probs
                ),
                candidate_items=one.candidate_items,
                candidate_scores=_scores(score_of, one.candidate_items),
                target_score=float(score_of[one.prompt.target_item]),
                candidate_spread=_scores(spread_of, one.candidate_items),
                target_spread=float(spread_of[one.prompt.target_item]),
                candidate_values=_scores(value_of, one.candidate_items),
                target_value=float(value_of[one.prompt.target_item]),
                distractor_items=one.distractor_items,
                distractor_scores=_scores(score_of, one.distractor_items),
                version_min=generation.version_min,
                version_max=generation.version_max,
                ranker_version=ranker_version,
                generate_s=one.generate_s,
                score_s=score_s,
                catalogue_version=generation.catalogue_version,
            )
        )
    return groups


def check_scores(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The ranker's answer as float32.

    Raises:
        RankerError: it has another shape than the question, or is not NaN exactly at the padding.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != candidates.shape:
        raise RankerError(f"the ranker answered with shape {scores.shape} to candidates of shape {candidates.shape}")
    wrong = np.isfinite(scores) != (candidates >= 0)
    wrong |= np.isnan(scores) != (candidates < 0)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise RankerError(
            f"the ranker gave {scores[row, column]} to item {candidates[row, column]} (row {row}, column "
            f"{column}); scores must be finite for items and NaN at padding (-1)"
        )
    return scores


def check_assessment(candidates: np.ndarray, assessment: Assessment) -> Assessment:
    """The ranker's answer as float32.

    Raises:
        RankerError: the scores break `check_scores`, or the spread or the values do and are not NaN throughout, or a
            spread is negative.
    """
    found = {"scores": check_scores(candidates, assessment.scores)}
    for name in ("spread", "values"):
        given = np.asarray(getattr(assessment, name), dtype=np.float32)
        try:
            unknown = given.shape == candidates.shape and np.isnan(given).all()
            found[name] = given if unknown else check_scores(candidates, given)
        except RankerError as error:
            raise RankerError(f"{name} of the ranker's assess: {error}, or NaN everywhere if not known") from None
    if (found["spread"] < 0).any():
        raise RankerError(
            f"the ranker's assess gave the spread {np.nanmin(found['spread']):g}; a deviation is 0 or more"
        )
    return Assessment(**found)


def _asked(one: Drawn) -> list[int]:
    valid = one.candidate_items[one.candidate_items >= 0].tolist()
    return list(dict.fromkeys([one.prompt.target_item, *valid, *one.distractor_items.tolist()]))


def _by_item(asked: list[int], row: np.ndarray) -> dict[int, float]:
    """The row's values by item, NaN for no item; the row is padded beyond what was asked."""
    return dict(zip(asked, row, strict=False)) | {-1: np.nan}


def _scores(score_of: dict[int, float], items: np.ndarray) -> np.ndarray:
    return np.asarray([score_of[item] for item in items.tolist()], dtype=np.float32)
