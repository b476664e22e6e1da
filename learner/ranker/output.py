"""What a ranker says of candidates, in one form for every ranker, and the checks of its answer."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import numpy as np

from sluice.catalog.errors import RankerError


@dataclass(frozen=True, kw_only=True)
class RankerOutput:
    """Scores of C candidates under each of B histories, and what else the ranker knows of them.

    `spread` and `values` are NaN at padding like the scores, or NaN throughout when the ranker does not know
    them.
    """

    scores: np.ndarray  # [B, C] float32, higher is better
    spread: np.ndarray  # [B, C] float32, deviation of the score over the ranker's members
    values: np.ndarray  # [B, C] float32, predicted logged reward in the unit of the log (`data.reward`)

    @classmethod
    def of(
        cls, scores: np.ndarray, spread: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> Self:
        """An output of `[B, C]` arrays; what is None is not known, and becomes NaN throughout.

        Example:
            >>> import numpy as np
            >>> RankerOutput.of(np.array([[0.5, -1.0]])).spread
            array([[nan, nan]], dtype=float32)
        """
        unknown = np.full(np.shape(scores), np.nan, dtype=np.float32)
        return cls(
            scores=scores,
            spread=unknown if spread is None else spread,
            values=unknown if values is None else values,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["RankerOutput"]) -> Self:
        """The rows of all parts, which have one width."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS})

    def cut(self, first: int, rows: int, columns: int) -> Self:
        """A copy of `rows` rows from `first` on, and of their first `columns` columns."""
        return type(self)(
            **{name: getattr(self, name)[first : first + rows, :columns].copy() for name in FIELDS}
        )


FIELDS = tuple(RankerOutput.__dataclass_fields__)


class _Scorer(Protocol):
    """The part of `sluice.learner.ranker.model.Ranker` that every ranker has and is asked for here."""

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray: ...


def ask_ranker(ranker: _Scorer, histories: list[np.ndarray], candidates: np.ndarray) -> RankerOutput:
    """Ask the ranker's `predict` where it has one, otherwise its `score`; the answer is unchecked.

    >>> class Same:
    ...     def score(self, histories, candidates):
    ...         return np.ones(candidates.shape, dtype=np.float32)
    >>> answer = ask_ranker(Same(), [np.array([0])], np.array([[1, 2]]))
    >>> answer.scores.tolist(), answer.spread.tolist()
    ([[1.0, 1.0]], [[nan, nan]])

    A ranker whose `predict` still has its former name, `assess`, is asked by that, with a warning.

    Raises:
        RankerError: `predict` answered with something that has no scores, spread and values.
    """
    predict = getattr(ranker, "predict", None)
    if predict is None and (predict := getattr(ranker, "assess", None)) is not None:
        _warn_of_assess(type(ranker).__name__)
    if predict is None:
        return RankerOutput.of(ranker.score(histories, candidates))
    answer = predict(histories, candidates)
    missing = [name for name in FIELDS if not hasattr(answer, name)]
    if missing:
        raise RankerError(
            f"the ranker's predict answered with {type(answer).__name__}, which has no {', '.join(missing)}: "
            "return a sluice.learner.ranker.output.RankerOutput, for example "
            "RankerOutput.of(scores, spread=spread)"
        )
    return RankerOutput(**{name: getattr(answer, name) for name in FIELDS})


@lru_cache
def _warn_of_assess(ranker: str) -> None:
    warnings.warn(
        f"{ranker}.assess is called predict now: rename it, the former name goes with the next release",
        FutureWarning,
        stacklevel=2,
    )


def check_scores(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The ranker's scores as float32 `[B, C]`, for candidates int32 `[B, C]` (-1: padding).

    Raises:
        RankerError: it has another shape than the question, or is not NaN exactly at the padding.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != candidates.shape:
        raise RankerError(
            f"the ranker answered with shape {scores.shape} to candidates of shape {candidates.shape}"
        )
    wrong = np.isfinite(scores) != (candidates >= 0)
    wrong |= np.isnan(scores) != (candidates < 0)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise RankerError(
            f"the ranker gave {scores[row, column]} to item {candidates[row, column]} (row {row}, column "
            f"{column}); scores must be finite for items and NaN at padding (-1)"
        )
    return scores


def check_output(candidates: np.ndarray, output: RankerOutput) -> RankerOutput:
    """The ranker's output as float32 `[B, C]`, for candidates int32 `[B, C]` (-1: padding).

    Raises:
        RankerError: the scores break `check_scores`, or the spread or the values do and are not NaN
            throughout, or a spread is negative.
    """
    checked = {"scores": check_scores(candidates, output.scores)}
    for name in ("spread", "values"):
        answer = np.asarray(getattr(output, name), dtype=np.float32)
        try:
            unknown = answer.shape == candidates.shape and np.isnan(answer).all()
            checked[name] = answer if unknown else check_scores(candidates, answer)
        except RankerError as error:
            raise RankerError(
                f"{name} of the ranker's predict: {error}, or NaN everywhere if not known"
            ) from None
    if (checked["spread"] < 0).any():
        raise RankerError(
            f"the ranker's predict gave the spread {np.nanmin(checked['spread']):g}; a deviation is 0 or more"
        )
    return RankerOutput(**checked)
