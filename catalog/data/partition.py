"""Sorting a log that is too large to hold.

Clean rows go to one file on disk. DuckDB sorts it by (hash of the user, user, time, place in the log), within
a bound of memory and with what does not fit on disk, and hands it on bucket by bucket.

Buckets are ranges of the hash, so the order of all users does not depend on how many buckets there are.

With all rows of a user together, it can be told what counts as an event: rows with histories are joined to
sequences (`histories.py`), an event that was logged twice counts once, and what was shown without a click is
set apart.
"""

import glob
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sluice.catalog.data.cleaning import BadRow
from sluice.catalog.data.histories import FROM_HISTORY, join_rows
from sluice.catalog.data.schema import EXPOSED_INTERACTIONS, IMPRESSIONS
from sluice.catalog.errors import DataError
from sluice.catalog.values import as_numpy

BUCKET_ROWS = 1_000_000
SORT_MEMORY = "512MB"  # of DuckDB, which takes a little more beside it

# Rows with their user, beside the columns that the log has.
_ROWS = pa.schema(
    [
        pa.field("hash", pa.uint32()),
        pa.field("user_id", pa.string()),
        *[EXPOSED_INTERACTIONS.field(i) for i in range(1, len(EXPOSED_INTERACTIONS))],
        pa.field("history", pa.large_list(pa.int32())),  # item numbers; null: the log has no histories
        pa.field("file", pa.string()),  # where the row was read, for logs with histories
        pa.field("row", pa.int64()),
        pa.field("place", pa.int64()),  # in the log: rows of one user and time keep their order
    ]
)
_ALWAYS = {"hash", "user_id", "item", "timestamp", "row", "place"}
_READ_ROWS = 250_000  # that DuckDB hands on at a time
_TIME_AND_PLACE = ("user", "item", "timestamp")  # what is known of an event that no row has as its target


class ItemIndex:
    """Item id -> number. Without a catalogue, ids are numbered as they come and put in order at the end."""

    def __init__(self, ids: list[str] | None) -> None:
        self._open = ids is None
        self._number = {item: number for number, item in enumerate(ids or [])}

    def __len__(self) -> int:
        return len(self._number)

    def contains(self, ids: pa.Array) -> np.ndarray:
        """bool [n], whether each of the ids [n] is in the catalogue."""
        encoded = ids.dictionary_encode()
        known = np.asarray([item in self._number for item in encoded.dictionary.to_pylist()], dtype=bool)
        known_of_rows: np.ndarray = known[encoded.indices.to_numpy()]
        return known_of_rows

    def number_ids(self, ids: pa.Array) -> np.ndarray:
        """The numbers of ids [n], int32 [n]; a new id gets the next number when there is no catalogue."""
        encoded = ids.dictionary_encode()
        if self._open:
            numbers = [
                self._number.setdefault(item, len(self._number)) for item in encoded.dictionary.to_pylist()
            ]
        else:
            numbers = [self._number[item] for item in encoded.dictionary.to_pylist()]
        numbers_of_rows: np.ndarray = np.asarray(numbers, dtype=np.int32)[encoded.indices.to_numpy()]
        return numbers_of_rows

    def order_rows(self) -> tuple[list[str], np.ndarray]:
        """The ids in order of item rows, and the row of each number, int32 [N].

        Without a catalogue the ids are sorted; with one its order stays.
        """
        ids = list(self._number)
        if not self._open:
            return ids, np.arange(len(ids), dtype=np.int32)
        order = np.asarray(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
        row = np.empty(len(ids), dtype=np.int32)
        row[order] = np.arange(len(ids), dtype=np.int32)
        return [ids[number] for number in order], row


@dataclass(frozen=True, kw_only=True)
class EventRules:
    """What counts as an event."""

    min_interactions: int  # users with fewer are dropped
    unclicked_are_impressions: bool
    has_times: bool  # False: a timestamp is the number of the row


@dataclass(frozen=True, kw_only=True)
class SortedBucket:
    """The users of one bucket, each with all their rows in order of part, then time."""

    user_ids: list[str]
    interactions: pa.Table  # schema EXPOSED_INTERACTIONS; `user` counts on from the buckets before
    impressions: pa.Table  # schema IMPRESSIONS
    dropped_users: int  # with fewer rows than asked for
    dropped_rows: int
    noted: Counter[str]  # what was set apart or left out, by name
    refused: list[BadRow]  # rows whose history contradicts those before


class UserBuckets:
    """The rows of a log on disk: `add` all of them, `close`, then `read_sorted` once."""

    def __init__(self, directory: Path, estimated_rows: int) -> None:
        self._buckets = max(1, -(-estimated_rows // BUCKET_ROWS))
        self._path, self._spill = directory / "rows.parquet", directory / "rows.spill"
        self._columns = set(_ALWAYS)  # that some row has
        self._rows = 0
        self._writer = pq.ParquetWriter(
            self._path, _ROWS, compression="none", use_dictionary=False, write_statistics=False
        )

    def add(self, rows: pa.RecordBatch, index: ItemIndex, file: str, numbers: np.ndarray) -> None:
        """Write clean rows [n] (`cleaning.CLEAN_LOG`), read from `file` at `numbers` [n]."""
        users = rows.column("user_id").dictionary_encode()
        hashes = np.asarray([zlib.crc32(user.encode()) for user in users.dictionary.to_pylist()], np.uint32)
        history = rows.column("history")
        if history.null_count == len(history):  # the log has none
            history, files = (pa.nulls(len(rows), _ROWS.field(name).type) for name in ("history", "file"))
        else:
            lengths = as_numpy(pc.list_value_length(history))
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
            history = pa.LargeListArray.from_arrays(offsets, pa.array(index.number_ids(history.flatten())))
            files = pa.repeat(file, len(rows))
        columns = [
            pa.array(hashes[users.indices.to_numpy()]),
            rows.column("user_id"),
            pa.array(index.number_ids(rows.column("item_id"))),
            *rows.columns[2:-1],
            history,
            files,
            pa.array(numbers),
            pa.array(np.arange(self._rows, self._rows + len(rows))),
        ]
        batch = pa.record_batch(columns, schema=_ROWS)
        self._columns |= {name for name in _ROWS.names if batch.column(name).null_count < len(rows)}
        self._rows += len(rows)
        self._writer.write_batch(batch)

    def close(self) -> None:
        """End the file: no more rows come."""
        self._writer.close()

    def read_sorted(self, item_rows: np.ndarray, rules: EventRules) -> Iterator[SortedBucket]:
        """Every bucket in turn, sorted by user and time. The rows on disk are deleted at the end.

        `item_rows` int32 [N] are the item rows of the item numbers.

        Raises:
            DataError: the sort cannot go on, as when the disk is full.
        """
        first_user = 0
        for table in self._read_buckets():
            bucket = _sort(table, item_rows, rules, first_user)
            first_user += len(bucket.user_ids)
            yield bucket
        shutil.rmtree(self._spill, ignore_errors=True)
        self._path.unlink()

    def _read_buckets(self) -> Iterator[pa.Table]:
        """The sorted rows of every bucket in turn, with nulls for what the log has not."""
        names = [name for name in _ROWS.names if name in self._columns]  # the others would be sorted too
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": SORT_MEMORY,
            "threads": 1,
            "temp_directory": str(self._spill),
        }
        bucket, parts = 0, list[pa.Table]()
        try:
            with duckdb.connect(config=settings) as connection:
                connection.execute("SET enable_progress_bar = false")  # the caller has one
                rows = connection.read_parquet(glob.escape(str(self._path))).select(*names)
                for batch in rows.order("hash, user_id, timestamp, place").to_arrow_reader(_READ_ROWS):
                    part = _with_nulls(batch)
                    owners = (part.column("hash").to_numpy().astype(np.int64) * self._buckets) >> 32
                    while bucket < owners[-1]:
                        end = int(np.searchsorted(owners, bucket, side="right"))
                        yield pa.concat_tables([*parts, part.slice(0, end)])
                        part, owners = part.slice(end), owners[end:]
                        bucket, parts = bucket + 1, []
                    parts.append(part)
        except duckdb.Error as error:
            raise DataError(
                f"the log cannot be sorted in {self._path.parent}: {str(error).splitlines()[0]}"
            ) from None
        for _ in range(bucket, self._buckets):
            yield pa.concat_tables([*parts, _ROWS.empty_table()])
            parts = []


def _with_nulls(batch: pa.RecordBatch) -> pa.Table:
    columns = [
        batch.column(name) if name in batch.schema.names else pa.nulls(len(batch), kind)
        for name, kind in zip(_ROWS.names, _ROWS.types, strict=True)
    ]
    return pa.table(columns, names=_ROWS.names).cast(_ROWS)


def _sort(table: pa.Table, item_rows: np.ndarray, rules: EventRules, first_user: int) -> SortedBucket:
    noted: Counter[str] = Counter()
    ids, user = _number_users(table)
    columns = {name: table.column(name) for name in _ROWS.names[3:-1]}
    events = pa.table({"user": user, "item": item_rows[table.column("item").to_numpy()], **columns})
    shown = np.zeros(len(events), dtype=bool)
    if rules.unclicked_are_impressions:
        shown = as_numpy(pc.invert(events.column("click")).fill_null(False).combine_chunks())
    impressions, events = events.filter(pa.array(shown)), events.filter(pa.array(~shown))
    refused: list[BadRow] = []
    if events.column("history").null_count < len(events):
        events, refused = _join_histories(events, item_rows, rules.has_times, noted)
    else:
        events = _drop_repeated(events, noted, "repeated_events")
    impressions = _drop_repeated(impressions, noted, "repeated_impressions", of=events)
    rows_of = np.bincount(events.column("user").to_numpy(), minlength=len(ids))
    keeps = rows_of >= rules.min_interactions
    place = np.where(keeps, np.cumsum(keeps) - 1 + first_user, -1).astype(np.int32)
    kept, kept_impressions = _renumber(_in_order_of_parts(events), place), _renumber(impressions, place)
    noted["impressions"] = len(kept_impressions)
    noted["impressions_below_min_interactions"] = len(impressions) - len(kept_impressions)
    noted["ties_in_time"] = int(_ties(kept).sum()) if rules.has_times else 0
    return SortedBucket(
        user_ids=[ids[number] for number in np.flatnonzero(keeps)],
        interactions=kept.select(EXPOSED_INTERACTIONS.names).cast(EXPOSED_INTERACTIONS),
        impressions=kept_impressions.select(IMPRESSIONS.names).cast(IMPRESSIONS),
        dropped_users=int((~keeps & (rows_of > 0)).sum()),
        dropped_rows=len(events) - len(kept),
        noted=noted,
        refused=refused,
    )


def _in_order_of_parts(events: pa.Table) -> pa.Table:
    """Every user's rows with those of earlier parts first; within a part they stay in order of time."""
    if events.column("part").null_count == len(events):  # the log names no parts
        return events
    keys = (events.column("part").to_numpy(), events.column("user").to_numpy())
    return events.take(pa.array(np.lexsort(keys)))


def _number_users(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """The ids of the users in the order of the rows, and the number of every row's user, int64 [n]."""
    encoded = table.column("user_id").combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _drop_repeated(events: pa.Table, noted: Counter[str], name: str, of: pa.Table | None = None) -> pa.Table:
    """Keep the first of the rows with the same user, time and item, unless `of` has such a row already."""
    before = 0 if of is None else len(of)
    tables = [events] if of is None else [of.select(_TIME_AND_PLACE), events.select(_TIME_AND_PLACE)]
    keys = [
        np.concatenate([table.column(column).to_numpy() for table in tables])
        for column in ("item", "timestamp", "user")
    ]
    order = np.lexsort(keys)  # stable
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    first = np.ones(before + len(events), dtype=bool)
    first[order[1:][same]] = False
    kept = events.filter(pa.array(first[before:]))
    noted[name] += len(events) - len(kept)
    return kept


def _join_histories(
    events: pa.Table, item_rows: np.ndarray, has_times: bool, noted: Counter[str]
) -> tuple[pa.Table, list[BadRow]]:
    """Every user's rows with histories as one sequence, and the rows that contradict those before.

    An event that no row has as its target gets the time and the part of the next one that is a target.
    """
    user, item, timestamp = (events.column(name).to_numpy() for name in _TIME_AND_PLACE)
    lengths = as_numpy(pc.list_value_length(events.column("history")).combine_chunks())
    ends = np.cumsum(lengths)
    flat = item_rows[events.column("history").combine_chunks().flatten().to_numpy()]
    histories = [flat[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]
    rows_of_user = np.split(np.arange(len(events)), np.flatnonzero(np.diff(user)) + 1)
    bad: list[int] = []
    sources, owned, items, times = [], [], [], []
    for rows in rows_of_user:
        first = int(rows[0])
        joined, left = join_rows(
            histories[first : first + len(rows)],
            item[rows].tolist(),
            timestamp[rows].tolist() if has_times else None,
        )
        bad += [first + row for row in left]
        source = np.asarray(joined.next_owned(), dtype=np.int64) + first
        sources.append(source)
        owned.append(np.asarray(joined.owners) != FROM_HISTORY)
        items.append(np.asarray(joined.items, dtype=np.int32))
        # Without times a row may stand before one whose target came earlier.
        own = timestamp[source]
        times.append(own if has_times else np.minimum.accumulate(own[::-1])[::-1])
        noted["repeated_events"] += joined.repeated
    known = pa.array(np.concatenate(owned))
    joined_rows = events.take(pa.array(np.concatenate(sources)))
    columns = {
        name: column if name in (*_TIME_AND_PLACE, "part") else pc.if_else(known, column, None)
        for name, column in zip(joined_rows.column_names, joined_rows.columns, strict=True)
        if name != "history"
    }
    columns |= {"item": pa.array(np.concatenate(items)), "timestamp": pa.array(np.concatenate(times))}
    noted["events_from_histories"] += int((~np.concatenate(owned)).sum())
    return pa.table(columns), [_contradiction(events, row) for row in bad]


def _contradiction(events: pa.Table, row: int) -> BadRow:
    file, number = (events.column(name)[row].as_py() for name in ("file", "row"))
    return BadRow(
        file=file,
        row=number,
        column="history",
        value=f"{len(events.column('history')[row])} items",
        reason="does not fit what the user's rows before say (a session of its own needs its own user_id)",
    )


def _renumber(events: pa.Table, place: np.ndarray) -> pa.Table:
    """The rows of the users that have a place, with it as their number."""
    numbers = place[events.column("user").to_numpy()]
    table = events.set_column(0, "user", pa.array(numbers))
    return table.filter(pa.array(numbers >= 0))


def _ties(events: pa.Table) -> np.ndarray:
    """bool [n - 1]: the row has user and time of the one before; not where a history alone tells of it."""
    user, timestamp = (events.column(name).to_numpy() for name in ("user", "timestamp"))
    told = as_numpy(events.column("row").is_valid().combine_chunks())
    ties: np.ndarray = (np.diff(user) == 0) & (np.diff(timestamp) == 0) & told[:-1]
    return ties
