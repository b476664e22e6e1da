"""Changes of the catalogue of a run that has begun: items to add, items to retire.

They lie in the run's directory as Parquet files, one per version of the catalogue (`CATALOGUE_CHANGE`). So
they outlive every process, and whoever opens the directory comes to the same catalogue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.cleaning import judge_ids
from sluice.catalog.data.log_files import table_file
from sluice.catalog.data.sources import read_batches
from sluice.catalog.errors import DataError
from sluice.catalog.files import write_atomically
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.catalog.values import number_lists

# One version of a run's catalogue after the first: an item that is new, or one that is retired (`codes`
# null).
CATALOGUE_CHANGE = pa.schema(
    [pa.field("item_id", pa.string(), nullable=False), pa.field("codes", pa.list_(pa.int32()))]
)


@dataclass(frozen=True, kw_only=True)
class ItemRow:
    """A row of a user's file of items to add or to retire."""

    where: str  # file, row and item, for errors
    item_id: str
    codes: tuple[int, ...] | None  # one per level, the last may be left out; None: read without codes


def read_item_rows(path: Path, *, codes: bool) -> list[ItemRow]:
    """The rows of a file of items to add or to retire.

    The file has a column `item_id`. With `codes` it has a column of that name too: a list, or text with
    numbers in it.

    Raises:
        DataError: the file cannot be read, lacks a column, or a row has no id, an id twice or no codes.
    """
    columns = {name: name for name in (("item_id", "codes") if codes else ("item_id",))}
    rows: dict[str, ItemRow] = {}
    for batch in read_batches(table_file(path, "catalogue push"), columns, None):
        if batch.malformed:
            raise DataError(f"{path}, row {batch.malformed[0][0]}: has a wrong number of fields")
        given = batch.columns["item_id"]
        ids, faults = judge_ids(given)
        lists = number_lists(batch.columns["codes"]) if codes else [None] * len(ids)
        for place, (item_id, numbers) in enumerate(zip(ids.to_pylist(), lists, strict=True)):
            where = f"{path}, row {batch.rows[place]}, item {given[place].as_py()!r}"
            for reason in (reason for reason, bad in faults.items() if bad[place]):
                raise DataError(f"{where}: item_id {reason}")
            if item_id in rows:
                raise DataError(f"{where}: item_id stands in an earlier row")
            if codes and (numbers is None or not all(float(code).is_integer() for code in numbers)):
                raise DataError(f"{where}: codes must be whole numbers, one per level, got {numbers}")
            values = None if numbers is None else tuple(int(code) for code in numbers)
            rows[item_id] = ItemRow(where=where, item_id=item_id, codes=values)
    return list(rows.values())


class ChangingCatalogue:
    """The newest version of a run's catalogue, as its directory of changes has it."""

    def __init__(
        self, item_ids: Callable[[], Sequence[str]], vocabulary: Vocabulary, directory: Path
    ) -> None:
        """The catalogue as the data set has it, with the changes to come in `directory`.

        Args:
            item_ids: gives the data set's item ids `[N]`; called at the first change.
            vocabulary: version 0, of that data set.
            directory: of the changes; it need not be there yet.
        """
        self._item_ids, self._directory = item_ids, directory
        self.vocabulary = vocabulary

    def follow(self) -> Iterator[Vocabulary]:
        """Every version that has come since the last call, in order.

        Raises:
            DataError: a file in the directory is no change of this catalogue.
        """
        while (path := self._path(self.vocabulary.version + 1)).is_file():
            try:
                table = pq.read_table(path, schema=CATALOGUE_CHANGE)
                ids, codes = table["item_id"].to_pylist(), table["codes"].to_pylist()
                added = {item_id: row for item_id, row in zip(ids, codes, strict=True) if row is not None}
                self._apply(added, [item_id for item_id in ids if item_id not in added])
            except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
                raise DataError(f"{path} is no change of this run's catalogue: {error}") from None
            yield self.vocabulary

    def push(self, add: Sequence[ItemRow], retire: Sequence[ItemRow]) -> Vocabulary:
        """Write the next version, and return it.

        Every row of `add` has codes. Those that lack the last level get the lowest one that is free there.

        Raises:
            DataError: an item is there already or is not there, its codes are taken or are none of the
                policy's, nothing changes, or somebody else has just written a version.
        """
        if not add and not retire:
            raise DataError("nothing to push: give items to add or items to retire")
        for _ in self.follow():
            pass
        for row in retire:
            if row.item_id not in self._rows:
                raise DataError(f"{row.where}: can't be retired, the catalogue has no such item")
            if self.vocabulary.trie.item_leaf[self._rows[row.item_id]] < 0:
                raise DataError(f"{row.where}: is retired already")
        added = self._with_codes(add)
        path = self._path(self.vocabulary.version + 1)
        self._apply(added, [row.item_id for row in retire])
        ids = [*added, *(row.item_id for row in retire)]
        table = pa.table([ids, [*added.values(), *([None] * len(retire))]], schema=CATALOGUE_CHANGE)
        _write_new(table, path)
        return self.vocabulary

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self._item_ids())}

    def _path(self, version: int) -> Path:
        return self._directory / f"{version:05}.parquet"

    def _apply(self, added: dict[str, list[int]], retired: Sequence[str]) -> None:
        rows = np.asarray([self._rows[item_id] for item_id in retired], dtype=np.int64)
        codes = np.asarray(list(added.values()), dtype=np.int64) if added else None
        self.vocabulary = self.vocabulary.changed(new_codes=codes, retire=rows)
        self._rows |= {item_id: len(self._rows) + number for number, item_id in enumerate(added)}

    def _with_codes(self, add: Sequence[ItemRow]) -> dict[str, list[int]]:
        layout = self.vocabulary.layout
        sizes, taken = layout.level_sizes, _Taken(self.vocabulary)
        added: dict[str, list[int]] = {}
        for row in add:
            if row.item_id in self._rows:
                raise DataError(f"{row.where}: the catalogue has this item already, retired or not")
            codes = list(row.codes or ())
            if len(codes) not in (layout.levels, layout.levels - 1):
                raise DataError(
                    f"{row.where}: has {len(codes)} codes; the catalogue has {layout.levels} levels, of "
                    "which the last may be left out"
                )
            for level, (code, size) in enumerate(zip(codes, sizes, strict=False), start=1):
                if not 0 <= code < size:
                    raise DataError(
                        f"{row.where}: code {code} of level {level} is none of the policy's 0..{size - 1}"
                    )
            if len(codes) < layout.levels:
                last = taken.lowest_free(codes)
                if last is None:
                    raise DataError(
                        f"{row.where}: all {sizes[-1]} items that codes {codes} can have are taken; "
                        "give other codes"
                    )
                codes.append(last)
            if not taken.add(codes):
                raise DataError(f"{row.where}: codes {codes} belong to another item, retired or not")
            added[row.item_id] = codes
        return added


class _Taken:
    """Which codes have an item, retired ones included."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._sizes = vocabulary.layout.level_sizes
        codes = vocabulary.item_tokens - np.asarray(vocabulary.layout.level_offsets)
        # The number of each item's codes among all codes in lexicographic order.
        self._numbers = np.sort(np.ravel_multi_index(codes.T, self._sizes))
        self._since: set[int] = set()

    def add(self, codes: Sequence[int]) -> bool:
        """Take the codes; False when they are taken already."""
        number = int(np.ravel_multi_index(codes, self._sizes))
        if number in self._since or number in self._between(number, number + 1):
            return False
        self._since.add(number)
        return True

    def lowest_free(self, prefix: Sequence[int]) -> int | None:
        """The lowest code of the last level that makes codes of no item out of those of the other levels."""
        first = int(np.ravel_multi_index([*prefix, 0], self._sizes))
        numbers = range(first, first + self._sizes[-1])
        taken = self._since.union(self._between(numbers.start, numbers.stop).tolist())
        return next((number - first for number in numbers if number not in taken), None)

    def _between(self, low: int, high: int) -> np.ndarray:
        return self._numbers[slice(*np.searchsorted(self._numbers, [low, high]))]


def _write_new(table: pa.Table, path: Path) -> None:
    """The whole file under its name or nothing, and never over another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    try:
        write_atomically(path, sink.getvalue().to_pybytes(), overwrite=False)
    except FileExistsError:
        raise DataError(f"{path} has just been written by somebody else: push again") from None
