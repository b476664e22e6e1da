"""Fitting the built-in ranker without each half of the users (`sluice.learner.trust.halves`)."""

from pathlib import Path

from sluice.catalog.data.dataset import Dataset
from sluice.learner.ranker.fit import Progress, fit_on, logs_of
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.trust.halves import HALVES, name_of, users_of


def fit_halves(
    dataset: Dataset, settings: RankerSettings, seed: int, directory: Path, progress: Progress
) -> None:
    """Fit the built-in ranker without each half, and save both in `directory`.

    Raises:
        RankerError: EASE would take more memory than it may, or a half has too few logs.
        DataError: a half has no logs to learn from.
    """
    logs = logs_of(dataset, settings)
    for half in range(HALVES):

        def report(done: int, total: int, fields: dict[str, float], half: int = half) -> None:
            progress(half * total + done, HALVES * total, fields)

        rest = logs.without(users_of(dataset, half))
        fit_on(rest, settings, seed, report).save(directory / name_of(half))
