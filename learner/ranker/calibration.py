"""Calibration: does what is predicted happen as often, or come out as large, as predicted? Pure numpy.

    ECE = sum over bins b of n_b / n * |mean prediction in b - mean observation in b|

with bins of equally many predictions (Nguyen & O'Connor 2015), so that bins are narrow where predictions are
dense.

Definition: docs/algorithms.md, Calibration.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10


@dataclass(frozen=True, kw_only=True)
class CalibrationCurve:
    """The b bins that hold something, in order of prediction."""

    predicted: np.ndarray  # float64 [b], mean prediction
    observed: np.ndarray  # float64 [b], mean observation
    events: np.ndarray  # int64 [b]

    @property
    def error(self) -> float:
        """The expected calibration error, in the unit of the predictions."""
        return float((self.events / self.events.sum() * np.abs(self.predicted - self.observed)).sum())

    def as_json(self) -> dict[str, Any]:
        """The error, the number of events, and the curve as lists."""
        curve = {name: getattr(self, name).tolist() for name in ("predicted", "observed", "events")}
        return {"ece": self.error, "events": int(self.events.sum()), "curve": curve}


def calibration_curve(predicted: np.ndarray, observed: np.ndarray, bins: int = BINS) -> CalibrationCurve:
    """Bin n >= 1 predictions `[n]` with their observations `[n]`.

    Bin k ends with the smallest prediction that at least k/bins of all predictions do not exceed. Equal
    predictions are in one bin, so there may be fewer bins than asked for, of unequal size.  [ours]
    """
    edges = np.quantile(predicted, np.arange(1, bins) / bins, method="inverted_cdf")
    bin_of = np.searchsorted(edges, predicted, side="left")
    events = np.bincount(bin_of, minlength=bins)
    held = events > 0
    sums = (np.bincount(bin_of, weights=values, minlength=bins)[held] for values in (predicted, observed))
    mean_predicted, mean_observed = (values / events[held] for values in sums)
    return CalibrationCurve(predicted=mean_predicted, observed=mean_observed, events=events[held])
