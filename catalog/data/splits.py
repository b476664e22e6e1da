"""Which interactions train, which validate, which test.

Sequences are in order of time, so the training part of a user is always a prefix of the user's sequence, the
validation part comes next, the test part last. An example needs a history: the first interaction of a user is
never a target, though it counts as part of its split.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from sluice.catalog.data.settings import GlobalTime, LeaveLastTwoOut, Split
from sluice.catalog.errors import DataError

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)

_BINS = 4096


@dataclass(frozen=True, kw_only=True)
class TimeCuts:
    """Where a global split cuts: validation from `valid_from` on, test from `test_from` on."""

    valid_from: int
    test_from: int


def label_splits(
    offsets: np.ndarray, timestamps: np.ndarray, split: Split, cuts: TimeCuts | None
) -> np.ndarray:
    """The split of every interaction, int8 `[n]`: an index into `SPLITS`.

    The sequence of user u is `offsets[u] : offsets[u + 1]` of the interactions, in order of time.

    Raises:
        ValueError: a global split is asked for without its cuts.
    """
    if isinstance(split, LeaveLastTwoOut):
        from_end = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(timestamps))
        return np.select([from_end == 1, from_end == 2], [TEST, VALID], TRAIN).astype(np.int8)
    if cuts is None:
        raise ValueError("a global split needs its cuts")
    return np.select(
        [timestamps >= cuts.test_from, timestamps >= cuts.valid_from], [TEST, VALID], TRAIN
    ).astype(np.int8)


def training_lengths(offsets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many interactions of each user train, int64 `[U]`, from the splits int8 `[n]` of all of them."""
    before = np.concatenate([[0], np.cumsum(labels == TRAIN)])
    lengths: np.ndarray = before[offsets[1:]] - before[offsets[:-1]]
    return lengths


def positions_of(offsets: np.ndarray) -> np.ndarray:
    """The position of every interaction in its user's sequence, int32 `[n]`."""
    positions: np.ndarray = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return positions.astype(np.int32)


def find_cuts(chunks: Callable[[], Iterable[np.ndarray]], split: GlobalTime) -> TimeCuts:
    """The cuts of a global split over timestamps that are too many to hold.

    `chunks()` streams them, int64 `[any length]` each, anew on every call.

    With n timestamps in order, `test_from` is the one at place floor(n * (1 - test_share)) counted from 0,
    `valid_from` the one at floor(n * (1 - test_share - valid_share)); equal timestamps go together, to the
    later part.

    Raises:
        DataError: the shares leave a part empty, because there are too few distinct timestamps.
    """
    n = sum(len(chunk) for chunk in chunks())
    places = [int(n * (1 - split.test_share - split.valid_share)), int(n * (1 - split.test_share))]
    valid_from, test_from = (_at_place(chunks, place) for place in places)
    earliest = min((int(chunk.min()) for chunk in chunks() if len(chunk)), default=0)
    if not earliest < valid_from < test_from:
        raise DataError(
            f"the global time split leaves a part empty: the earliest timestamp is {earliest}, validation "
            f"would begin at {valid_from} and test at {test_from}. Many of the {n} interactions share a "
            "time, or there are too few: change data.split.valid_share and data.split.test_share, or use "
            "leave_last_two_out"
        )
    return TimeCuts(valid_from=valid_from, test_from=test_from)


def _at_place(chunks: Callable[[], Iterable[np.ndarray]], place: int) -> int:
    """The value at a place of the sorted stream, exact and in constant memory.

    Histograms of ever narrower ranges find it.
    """
    low = min((int(chunk.min()) for chunk in chunks() if len(chunk)), default=0)
    high = max((int(chunk.max()) for chunk in chunks() if len(chunk)), default=0)
    while low < high:
        width = (high - low) // _BINS + 1
        counts = np.zeros(_BINS, dtype=np.int64)
        for chunk in chunks():
            inside = chunk[(chunk >= low) & (chunk <= high)]
            counts += np.bincount((inside - low) // width, minlength=_BINS)
        reached = np.cumsum(counts)
        chosen = int(np.searchsorted(reached, place, side="right"))
        place -= int(reached[chosen] - counts[chosen])
        low, high = low + chosen * width, min(high, low + (chosen + 1) * width - 1)
    return low
