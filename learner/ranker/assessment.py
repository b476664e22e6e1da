"""What a ranker says of candidates, asked of any ranker in one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sluice.catalog.errors import RankerError


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Scores of C candidates under each of B histories, and what else the ranker knows of them.

    `spread` and `values` are NaN at padding like the scores, or NaN throughout when the ranker does not know them.
    """

    scores: np.ndarray  # [B, C] float32, higher is better
    spread: np.ndarray  # [B, C] float32, deviation of the score over the ranker's members
    values: np.ndarray  # [B, C] float32, predicted logged reward in the unit of the log (`data.reward`)

    @classmethod
    def of(cls, scores: np.ndarray, spread: np.ndarray | None = None, values: np.ndarray | None = None) -> Self:
        """What is None is not known, and becomes NaN throughout."""
        unknown = np.full(np.shape(scores), np.nan, dtype=np.float32)
        return cls(
            scores=scores, spread=unknown if spread is None else spread, values=unknown if values is None else values
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Assessment"]) -> Self:
        """The rows of all parts, which have one width."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS})

    def cut(self, first: int, rows: int, columns: int) -> Self:
        """A copy of `rows` rows from `first` on, and of their first `columns` columns."""
        return type(self)(**{name: getattr(self, name)[first : first + rows, :columns].copy() for name in FIELDS})


FIELDS = tuple(Assessment.__dataclass_fields__)


def assess(ranker: Any, histories: list[np.ndarray], candidates: np.ndarray) -> Assessment:
    """Ask the ranker's `assess` where it has one, otherwise its `score`; the answer is unchecked.

    Raises:
        RankerError: `assess` answered with something that has no scores, spread and values.
    """
    if not hasattr(ranker, "assess"):
        return Assessment.of(ranker.score(histories, candidates))
    answer = ranker.assess(histories, candidates)
    missing = [name for name in FIELDS if not hasattr(answer, name)]
    if missing:
        raise RankerError(
            f"the ranker's assess answered with {type(answer).__name__}, which has no {', '.join(missing)}: return a "
            "sluice.learner.ranker.assessment.Assessment, for example Assessment.of(scores, spread=spread)"
        )
    return Assessment(**{name: getattr(answer, name) for name in FIELDS})


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
