"""The truth of a simulated world as a judge of lists: what no log can tell."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.simulator.items import SEGMENTS
from sluice.catalog.simulator.truth import Truth
from sluice.learner.evaluation.evaluate import TOP, UserResults
from sluice.services.study.judges.lists import GROUP, TRUE_CTR


class OracleTrust:
    """A gate by user that knows the truth: the ranker is to be trusted about segment A, and not about B."""

    def __init__(self, world: Path, dataset: Dataset) -> None:
        """`world` is a directory that `sluice simulate` wrote, and `dataset` is made of its log."""
        segment = Truth.open(world).segment[np.array(dataset.user_ids, dtype=np.int64)]
        self._trust = (segment == SEGMENTS.index("A")).astype(np.float32)

    def measure(self, examples: Examples) -> np.ndarray:
        """1 or 0, float32 `[B]`, of the users of the examples."""
        trust: np.ndarray = self._trust[examples.users]
        return trust


class TrueClickThrough:
    """Of each example: the mean click probability of its top ten when looked at, and the segment."""

    def __init__(self, world: Path) -> None:
        """`world` is a directory that `sluice simulate` wrote, and data sets are made of its log."""
        self._truth = Truth.open(world)

    def __call__(self, dataset: Dataset, results: UserResults) -> Mapping[str, np.ndarray]:
        """Columns of the examples of `results`; a place without an item counts as one that nobody clicks."""
        examples = Examples(users=results.users, positions=results.positions)
        users = np.array(dataset.user_ids, dtype=np.int64)[results.users]
        return {
            TRUE_CTR: self.of_items(dataset, examples, results.items[:, :TOP]).mean(axis=1, dtype=np.float64),
            GROUP: np.array(SEGMENTS)[self._truth.segment[users]],
        }

    def of_items(self, dataset: Dataset, examples: Examples, items: np.ndarray) -> np.ndarray:
        """The click probabilities float32 `[n, m]` of item rows `[n, m]`, 0 of -1.

        The moment is that of the logged interaction that each example's target is.
        """
        users = np.array(dataset.user_ids, dtype=np.int64)[examples.users]
        known_items = np.append(np.array(dataset.item_ids, dtype=np.int64), -1)  # the last for no item
        times = dataset.timestamps[dataset.offsets[examples.users] + examples.positions]
        return self._truth.click_probability(users, self._truth.steps_of(times), known_items[items])

    def dwell_of_items(self, dataset: Dataset, examples: Examples, items: np.ndarray) -> np.ndarray:
        """The expected dwell seconds of a click, float64 `[n, m]`, 0 of -1; see `of_items`.

        The log of the seconds is normal, so the mean is exp(base + slope * logit + noise^2 / 2).
        """
        click = self._truth.world.click
        chances = self.of_items(dataset, examples, items).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            logits = np.log(chances) - np.log1p(-chances)
        seconds: np.ndarray = np.exp(click.dwell_base + click.dwell_slope * logits + click.dwell_noise**2 / 2)
        return np.where(items >= 0, seconds, 0.0)
