"""Rankers that have not seen the users whose logged items they place.

A ranker places an item that it was fitted on better than one that it was not, so trust measured with it would
be too high for everybody. So the users are dealt into two halves, and a copy of the ranker is fitted without
each: what is measured of a user comes from the copy that has not seen them. [ours]

The built-in ranker is fitted so by `sluice fit-ranker` (`sluice.learner.trust.fit`). A class of the user's
own may take the argument `without_users`, the rows of users to leave out. One that does not is asked itself,
and trust in it is in sample.

Definition: docs/algorithms.md, Gate by user.
"""

import hashlib
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.learner.ranker.contract import Ranker
from sluice.learner.ranker.load import can_leave_users_out, load_ranker
from sluice.learner.ranker.settings import RankerSettings

HALVES = 2


def half_of(user_id: str) -> int:
    """Which half a user is in, 0 or 1: by the id alone, so that it is the same in every process and run."""
    return hashlib.blake2b(user_id.encode(), digest_size=1).digest()[0] % HALVES


def users_of(dataset: Dataset, half: int) -> np.ndarray:
    """The users of a half, int64 rows."""
    return np.flatnonzero([half_of(user_id) == half for user_id in dataset.user_ids])


def name_of(half: int) -> str:
    """Of the directory that holds the built-in ranker without this half."""
    return f"without-{half}"


def open_halves(
    ranker: Ranker, settings: RankerSettings, directory: str | Path, dataset: Dataset
) -> tuple[Ranker, Ranker]:
    """The rankers to ask about the users of half 0 and of half 1.

    The built-in one's are in `directory`. For a class that cannot leave users out both are `ranker` itself.

    Raises:
        RankerError: a half cannot be opened.
    """
    if settings.use != "builtin" and not can_leave_users_out(settings):
        return ranker, ranker
    first, second = (
        load_ranker(settings, Path(directory) / name_of(half), dataset, without_users=users_of(dataset, half))
        for half in range(HALVES)
    )
    return first, second
