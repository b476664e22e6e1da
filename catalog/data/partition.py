"""Sorting a log that is too large to hold.

Rows go to buckets on disk by a hash of the user, and each bucket is sorted alone.

Buckets are ranges of the hash and users within a bucket are in order of (hash, id), so the order of all users
does not depend on how many buckets there are.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sluice.catalog.data.schema import INTERACTIONS

BUCKET_ROWS = 1_000_000
MAX_BUCKETS = 256

_BUCKETED = pa.schema(
    [pa.field("user_id", pa.string()), *[INTERACTIONS.field(i) for i in range(1, len(INTERACTIONS))]]
)


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
class SortedBucket:
    """The users of one bucket, each with all their rows in order of part, then time."""

    user_ids: list[str]
    interactions: pa.Table  # schema INTERACTIONS; `user` counts on from the buckets before
    dropped_users: int  # with fewer rows than asked for
    dropped_rows: int


class UserBuckets:
    """Buckets of a log on disk: `add` all rows, `close`, then `read_sorted` once."""

    def __init__(self, directory: Path, estimated_rows: int) -> None:
        count = min(MAX_BUCKETS, max(1, -(-estimated_rows // BUCKET_ROWS)))
        self._paths = [directory / f"bucket-{number:03d}.arrow" for number in range(count)]
        self._writers = [pa.ipc.new_stream(str(path), _BUCKETED) for path in self._paths]

    def add(self, rows: pa.RecordBatch, items: np.ndarray) -> None:
        """Write clean rows (sluice.catalog.data.cleaning.CLEAN_LOG) with their item numbers."""
        encoded = rows.column("user_id").dictionary_encode()
        hashes = np.asarray([_hash(user) for user in encoded.dictionary.to_pylist()], dtype=np.int64)
        bucket = ((hashes * len(self._paths)) >> 32)[encoded.indices.to_numpy()]
        order = np.argsort(bucket, kind="stable")
        columns = [rows.column("user_id"), pa.array(items), *rows.columns[2:]]
        batch = pa.record_batch(columns, schema=_BUCKETED).take(pa.array(order))
        edges = np.searchsorted(bucket[order], np.arange(len(self._paths) + 1))
        for number in np.flatnonzero(np.diff(edges)):
            self._writers[number].write_batch(batch.slice(edges[number], edges[number + 1] - edges[number]))

    def close(self) -> None:
        """End the files: no more rows come."""
        for writer in self._writers:
            writer.close()

    def read_sorted(self, item_rows: np.ndarray, min_interactions: int) -> Iterator[SortedBucket]:
        """Every bucket in turn, sorted by user and time. A bucket's file is deleted once it is read.

        Args:
            item_rows: int32 [N], the item row of each item number.
            min_interactions: users with fewer are dropped.
        """
        first_user = 0
        for path in self._paths:
            with pa.memory_map(str(path)) as stream:
                table = pa.ipc.open_stream(stream).read_all()
                bucket = _sort(table, item_rows, min_interactions, first_user)
            path.unlink()
            first_user += len(bucket.user_ids)
            yield bucket


def _hash(user_id: str) -> int:
    return zlib.crc32(user_id.encode())


def _sort(table: pa.Table, item_rows: np.ndarray, min_interactions: int, first_user: int) -> SortedBucket:
    encoded = table.column("user_id").combine_chunks().dictionary_encode()
    ids = encoded.dictionary.to_pylist()
    by_hash = np.asarray(sorted(range(len(ids)), key=lambda i: (_hash(ids[i]), ids[i])), dtype=np.int64)
    rows_of = np.bincount(encoded.indices.to_numpy(), minlength=len(ids))
    kept = by_hash[rows_of[by_hash] >= min_interactions]
    place = np.full(len(ids), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    user = place[encoded.indices.to_numpy()]
    timestamp = table.column("timestamp").to_numpy()
    part = table.column("part").fill_null(0).to_numpy()
    # Stable: rows of one user, part and time stay in the order of the source.
    order = np.lexsort((timestamp, part, user))
    order = order[np.searchsorted(user[order], 0) :]
    columns = [
        pa.array((user[order] + first_user).astype(np.int32)),
        pa.array(item_rows[table.column("item").to_numpy()[order]]),
        *[table.column(name).take(pa.array(order)).combine_chunks() for name in INTERACTIONS.names[2:]],
    ]
    return SortedBucket(
        user_ids=[ids[i] for i in kept],
        interactions=pa.table(columns, schema=INTERACTIONS),
        dropped_users=len(ids) - len(kept),
        dropped_rows=len(user) - len(order),
    )
