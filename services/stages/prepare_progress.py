"""How far `prepare` is: all its stages in one measure, so that the seconds left are true.

The measure is the time that reading and cleaning a row takes. What the others cost beside it was measured on
logs of 1 to 20 million rows. Fitting semantic IDs depends on the items and not on the rows; how many items
there are is known for certain once the log is read.
"""

import time
from collections.abc import Callable

from sluice.catalog.data.cooccurrence import most_pairs
from sluice.catalog.data.semantic_ids import MANY, fitting_level_sizes
from sluice.catalog.data.settings import SemanticIdSettings
from sluice.services.progress import Progress

_ROW_S = 0.75e-6  # reading one row
_SORT, _SPLIT, _COUNT_PLACE = 2.3, 0.4, 0.5  # per row; counting per place of the window
_MULTIPLY_S, _FLOPS = 1e-6, 70e9  # a pair of items in the SVD; k-means per second
_PAIRS_OF_ROW = 8  # different pairs of items that a row adds, as long as there are few rows for the items
_ROUNDS = 0.3  # of the iterations of k-means that a large catalogue takes


class PrepareProgress:
    """Reports `(done, total, fields)` for the stages read, sort, split, vectors and codes, in this order."""

    def __init__(
        self,
        report: Progress,
        ids: SemanticIdSettings,
        estimated_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report, self._ids = report, ids
        self._rows, self._items, self._fits = estimated_rows, 0, True
        self._stage, self._units = "read", 0.0
        self._clock, self._since_s = clock, clock()
        self.seconds: dict[str, float] = {}  # of every stage that is done

    def know(self, *, rows: int | None = None, items: int | None = None, fits: bool = True) -> None:
        """What has come out of the sizes; `fits`: semantic IDs are fitted, and not the user's."""
        self._rows = self._rows if rows is None else rows
        self._items = self._items if items is None else items
        self._fits = fits

    def begin(self, stage: str) -> None:
        """The stages before are done."""
        self._end()
        self._stage, self._units = stage, 0.0

    def advance(self, units: float, fields: dict[str, float]) -> None:
        """So much more of the stage is done: rows, or a share of vectors or codes."""
        self._units += units
        costs = self._costs()
        stages = list(costs)
        before = sum(costs[stage] for stage in stages[: stages.index(self._stage)])
        size = 1 if self._stage in ("vectors", "codes") else max(1, self._rows)
        share = min(1.0, self._units / size)
        total = sum(costs.values())
        self._report(round(before + share * costs[self._stage]), round(total), fields)

    def finish(self) -> None:
        """All is done."""
        self._end()
        total = round(sum(self._costs().values()))
        self._report(total, total, {})

    def _end(self) -> None:
        now_s = self._clock()
        self.seconds[self._stage] = now_s - self._since_s
        self._since_s = now_s

    def _costs(self) -> dict[str, float]:
        """Of every stage, in order, in rows read."""
        count = _COUNT_PLACE * self._ids.window if self._fits else 0
        vectors_s, codes_s = fit_seconds(self._ids, self._items, self._rows)
        return {
            "read": self._rows,
            "sort": self._rows * _SORT,
            "split": self._rows * (_SPLIT + count),
            "vectors": vectors_s / _ROW_S if self._fits else 0,
            "codes": codes_s / _ROW_S if self._fits else 0,
        }


def fit_seconds(ids: SemanticIdSettings, items: int, rows: int) -> tuple[float, float]:
    """About how long the vectors of `items` take on one core, and the codes."""
    pairs = min(items**2, 2 * most_pairs(items), _PAIRS_OF_ROW * rows)
    sizes = ids.level_sizes or fitting_level_sizes(items)
    products = sum(items * min(size, items) for size in sizes) * ids.vector_dims
    rounds = ids.iterations * (_ROUNDS if items > MANY else 1)
    return pairs * _MULTIPLY_S, 2 * products * rounds / _FLOPS
