"""What a ranker says of candidates, asked of any ranker in one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from catalog.errors import RankerError


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
            "learner.assessment.Assessment, for example Assessment.of(scores, spread=spread)"
        )
    return Assessment(**{name: getattr(answer, name) for name in FIELDS})
