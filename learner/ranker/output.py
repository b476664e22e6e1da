"""What a ranker says of candidates, in one form for every ranker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RankerOutput:
    """Scores of C candidates under each of B histories, and what else the ranker knows of them.

    `spread` and `values` are NaN at padding like the scores, or NaN throughout when the ranker does not know
    them.
    """

    scores: np.ndarray  # [B, C] float32, higher is better
    spread: np.ndarray  # [B, C] float32, deviation of the score over the ranker's members
    values: np.ndarray  # [B, C] float32, predicted logged reward in the unit of the log (`data.reward`)
    # [B] float32, how far to trust the ranker about each prompt's user, NaN: not known; None: nobody asked.
    # No ranker says this of itself: it is measured beside the scores (`sluice.learner.trust.meter`).
    trust: np.ndarray | None = None
    # Rows whose answer broke the contract, with the reason; what stands in them means nothing.
    wrong: Mapping[int, str] = field(default_factory=dict)

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
        """The rows of all parts, which have one width; trust is left out."""
        wrong: dict[int, str] = {}
        first = 0
        for part in parts:
            wrong |= {first + row: reason for row, reason in part.wrong.items()}
            first += len(part.scores)
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS}, wrong=wrong
        )

    def cut(self, first: int, rows: int, columns: int) -> Self:
        """A copy of `rows` rows from `first` on, and of their first `columns` columns."""
        chosen = slice(first, first + rows)
        return type(self)(
            **{name: getattr(self, name)[chosen, :columns].copy() for name in FIELDS},
            trust=None if self.trust is None else self.trust[chosen].copy(),
            wrong={row - first: why for row, why in self.wrong.items() if first <= row < first + rows},
        )


FIELDS = ("scores", "spread", "values")  # what a ranker answers with
