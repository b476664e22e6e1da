"""Which interactions pretrain, which are fresh, which validate, which test.

The parts of a user follow each other: pretrain, fresh, validation, test. Within a part interactions are in
order of time. A split that comes with the log labels its rows itself; the others are worked out here. An
example needs a history: the first interaction of a user is never a target, though it counts as part of its
part.
"""

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sluice.catalog.data.split_settings import (
    ColumnSplit,
    FreshLogs,
    GlobalTime,
    LeaveLastTwoOut,
    LoggedSplit,
    Split,
)
from sluice.catalog.errors import DataError
from sluice.catalog.timestamps import UNITS, TimeUnit

SPLITS = ("pretrain", "fresh", "valid", "test")
PRETRAIN, FRESH, VALID, TEST = range(4)

_BINS = 4096
_ROUNDING = 1e-9  # shares add up in floating point
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_PLAUSIBLE = (1e8, 1e11)  # seconds since 1970 that a moment may be: no two units overlap


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """m items that were shown to a user and not taken."""

    users: np.ndarray  # int32 [m]
    items: np.ndarray  # int32 [m]
    positions: np.ndarray  # int32 [m], how many interactions of the user came before
    parts: np.ndarray  # int8 [m], an index into `SPLITS`

    def __len__(self) -> int:
        return len(self.users)

    def where(self, chosen: np.ndarray) -> "Impressions":
        """Those that `chosen`, bool `[m]`, names."""
        return Impressions(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class TimeCuts:
    """Where a split by time cuts: when fresh part (None: there is none), validation and test begin."""

    fresh_from: int | None = None
    valid_from: int
    test_from: int

    @property
    def ends(self) -> tuple[int, int, int, int]:
        """The time at which each part of `SPLITS` has ended; test never has."""
        fresh_from = self.valid_from if self.fresh_from is None else self.fresh_from
        return fresh_from, self.valid_from, self.test_from, np.iinfo(np.int64).max


def label_splits(
    offsets: np.ndarray, timestamps: np.ndarray, split: Split, cuts: TimeCuts | None
) -> np.ndarray:
    """The part of every interaction, int8 `[n]`: an index into `SPLITS`.

    The sequence of user u is `offsets[u] : offsets[u + 1]` of the interactions, in order of time.

    Raises:
        ValueError: a split by time is asked for without its cuts, or one that the log's rows bring.
    """
    if isinstance(split, LoggedSplit):
        raise ValueError(f"the labels of split {split.type} are read from the log")
    lengths = np.diff(offsets)
    if isinstance(split, LeaveLastTwoOut):
        from_end = np.repeat(offsets[1:], lengths) - np.arange(len(timestamps))
        return np.select([from_end == 1, from_end == 2], [TEST, VALID], PRETRAIN).astype(np.int8)
    if isinstance(split, FreshLogs) and split.by == "user":
        shares = np.cumsum([split.pretrain_share, split.fresh_share, split.valid_share])
        ends = np.floor(lengths[:, None] * shares + _ROUNDING)  # [U, 3], where fresh, valid and test begin
        position = positions_of(offsets)[:, None]
        labels: np.ndarray = (position >= np.repeat(ends, lengths, axis=0)).sum(axis=1).astype(np.int8)
        return labels
    if cuts is None:
        raise ValueError("a split by time needs its cuts")
    fresh_from, valid_from, test_from, _ = cuts.ends
    parts = [timestamps >= test_from, timestamps >= valid_from, timestamps >= fresh_from]
    return np.select(parts, [TEST, VALID, FRESH], PRETRAIN).astype(np.int8)


def lengths_until(offsets: np.ndarray, labels: np.ndarray, part: int) -> np.ndarray:
    """How many interactions of each user lie before the end of a part, int64 `[U]`.

    `labels` int8 `[n]` are the parts of all interactions, `part` is one of them.
    """
    before = np.concatenate([[0], np.cumsum(labels <= part)])
    lengths: np.ndarray = before[offsets[1:]] - before[offsets[:-1]]
    return lengths


def positions_of(offsets: np.ndarray) -> np.ndarray:
    """The position of every interaction in its user's sequence, int32 `[n]`."""
    positions: np.ndarray = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return positions.astype(np.int32)


def count_earlier(keys: list[np.ndarray], rows: list[np.ndarray]) -> np.ndarray:
    """How many of the rows come strictly before each key, int64 `[m]`.

    Both are columns, the first of which decides first: `keys` `[m]` each, `rows` `[n]` each.
    """
    columns = [np.concatenate(pair) for pair in zip(keys, rows, strict=True)]
    is_row = np.arange(len(columns[0])) >= len(keys[0])
    order = np.lexsort((is_row, *reversed(columns)))  # of equals, the keys first
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[order] = np.cumsum(is_row[order])
    return earlier[: len(keys[0])]


def part_values(split: Split) -> dict[str, int] | None:
    """What the rows of a log may say of their part, with the index into `SPLITS`; None: they say nothing."""
    if not isinstance(split, LoggedSplit):
        return None
    named = {name: getattr(split, name) if isinstance(split, ColumnSplit) else (name,) for name in SPLITS}
    return {value: SPLITS.index(name) for name, values in named.items() for value in values}


def count_late_rows(offsets: np.ndarray, timestamps: np.ndarray) -> int:
    """How many interactions are earlier than one before them in their user's sequence, which has parts first.

    `timestamps` int64 `[n]`; user u's sequence is `offsets[u] : offsets[u + 1]`.
    """
    return sum(
        int((own < np.maximum.accumulate(own)).sum())
        for own in np.split(timestamps, offsets[1:-1])
        if len(own)
    )


def find_cuts(
    chunks: Callable[[], Iterable[np.ndarray]], split: GlobalTime | FreshLogs, unit: TimeUnit | None = None
) -> TimeCuts:
    """The cuts of a split by time over timestamps that are too many to hold.

    `chunks()` streams them, int64 `[any length]` each, anew on every call. They count `unit` since 1970, or
    are no dates (None). Moments that the split gives are brought to that unit.

    With shares and n timestamps in order, a part begins at the one at place floor(n * share), counted from
    0, with the share of all parts before it; equal timestamps go together, to the later part.

    Raises:
        DataError: a part is left empty: by shares, because there are too few distinct timestamps, or by
            moments that are out of order or outside the log.
    """
    earliest = min((int(chunk.min()) for chunk in chunks() if len(chunk)), default=0)
    if split.moments:
        latest = max((int(chunk.max()) for chunk in chunks() if len(chunk)), default=0)
        return _given_cuts(split.moments, earliest, latest, UNITS[unit] if unit else None)
    n = sum(len(chunk) for chunk in chunks())
    shares = {"valid_from": 1 - split.test_share - split.valid_share, "test_from": 1 - split.test_share}
    if isinstance(split, FreshLogs):
        shares = {"fresh_from": split.pretrain_share, **shares}
    cuts = {name: _at_place(chunks, int(n * share + _ROUNDING)) for name, share in shares.items()}
    bounds = [earliest, *cuts.values()]
    if any(later <= earlier for earlier, later in pairwise(bounds)):
        begins = ", ".join(f"{name.removesuffix('_from')} at {time}" for name, time in cuts.items())
        raise DataError(
            f"data.split leaves a part empty: the earliest timestamp is {earliest}, and the parts would "
            f"begin like this: {begins}. Many of the {n} interactions share a time, or there are too few: "
            "change the shares of data.split, or use leave_last_two_out"
        )
    return TimeCuts(**cuts)


def _given_cuts(
    moments: dict[str, int | str], earliest: int, latest: int, per_second: int | None
) -> TimeCuts:
    """The moments in the unit of a log that runs from `earliest` to `latest`."""
    cuts = {name: _in_unit(moment, per_second, f"{name} is {moment!r}") for name, moment in moments.items()}
    bounds = [earliest, *cuts.values()]
    if any(later <= earlier for earlier, later in pairwise(bounds)) or bounds[-1] > latest:
        begins = ", ".join(f"{name} {_shown(cut, per_second)}" for name, cut in cuts.items())
        raise DataError(
            f"data.split leaves a part empty: the log runs from {_shown(earliest, per_second)} to "
            f"{_shown(latest, per_second)}, and {begins} must lie within it, each later than the one before"
        )
    return TimeCuts(**cuts)


def _in_unit(moment: int | str, per_second: int | None, named: str) -> int:
    """A moment in the unit of the log, of which `per_second` make a second; None: its times are no dates."""
    if isinstance(moment, int):
        own = next((per for per in UNITS.values() if _PLAUSIBLE[0] <= moment / per < _PLAUSIBLE[1]), None)
        return moment if own is None or per_second is None else moment * per_second // own
    if per_second is None:
        raise DataError(
            f"data.split.{named}, and the times of the log are no dates: give a number in its unit"
        )
    when = datetime.datetime.fromisoformat(moment)
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return (when - _EPOCH) // datetime.timedelta(microseconds=1) * per_second // 10**6


def _shown(time: int, per_second: int | None) -> str:
    """A time of the log, and which date that is."""
    if per_second is None:
        return str(time)
    when = _EPOCH + datetime.timedelta(seconds=time // per_second)
    return f"{time} ({when:%Y-%m-%dT%H:%M:%S})"


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
