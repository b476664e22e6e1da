"""The items of a catalogue before they have semantic IDs, and what is known of users, which is read alike.

An item has an id, a title and attributes, and an embedding or codes if the user has them.

An attribute is a text `name=value`. Text columns may hold several values separated by `|`, or be lists; a
column of numbers with fractions becomes ten equally filled bins.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from sluice.catalog.data.cleaning import SHOWN, BadRow, Rejections, judge_ids
from sluice.catalog.data.sources import LogSource, RawBatch
from sluice.catalog.errors import DataError
from sluice.catalog.values import as_text, is_missing, number_lists, parse_numbers

_BINS = 10
MOST_VALUES = 64  # attributes of a user: the ranker holds as many numbers of every user as one of them has


@dataclass(frozen=True, kw_only=True)
class Items:
    """N items, in the order of the catalogue."""

    ids: list[str]
    titles: list[str | None]
    attributes: list[list[str]]  # sorted, without repeats
    embedding: np.ndarray | None = None  # float32 [N, d]
    codes: np.ndarray | None = None  # int32 [N, L], as the user gave them: not yet known to be one to one

    @classmethod
    def bare(cls, ids: Iterable[str]) -> "Items":
        """Items of which nothing is known but the id."""
        ids = list(ids)
        return cls(ids=ids, titles=[None] * len(ids), attributes=[[] for _ in ids])


@dataclass
class _Columns:
    """What has been read of the catalogue so far."""

    ids: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    values: dict[str, list[pa.Array]] = field(default_factory=dict)


def read_items(source: LogSource, rejections: Rejections) -> Items | None:
    """Read the catalogue of a source; None when it has none. An empty or repeated id is a bad row.

    Raises:
        DataError: an embedding or a code list breaks its contract, or no item is left.
    """
    if source.catalogue is None:
        return None
    read = _read(source.catalogue_batches(), "item_id", rejections)
    if not read.ids:
        raise DataError(f"the catalogue {source.catalogue.path} holds no usable item")
    columns = {name: _join(parts) for name, parts in read.values.items()}
    where = _Where(file=str(source.catalogue.path), rows=read.rows, ids=read.ids)
    attributes: list[list[str]] = [[] for _ in read.ids]
    for name in source.attribute_columns:
        values = columns[f"attribute:{name}"]
        more = _years(values) if name in source.years else _attribute(name, values, name in source.words)
        attributes = [texts + added for texts, added in zip(attributes, more, strict=True)]
    titles = as_text(columns["title"]).to_pylist() if "title" in columns else [None] * len(read.ids)
    return Items(
        ids=read.ids,
        titles=titles,
        attributes=[sorted(set(texts)) for texts in attributes],
        embedding=_embedding(columns["embedding"], where) if "embedding" in columns else None,
        codes=_codes(columns["codes"], where) if "codes" in columns else None,
    )


def read_user_attributes(source: LogSource, rejections: Rejections) -> dict[str, list[str]] | None:
    """The attributes of every user that the source's table of users knows, by id; None when it has none.

    An empty or repeated id is a bad row. A value that is missing is no attribute.

    Raises:
        DataError: a user has more than `MOST_VALUES` attributes.
    """
    if source.users is None:
        return None
    read = _read(source.user_batches(), "user_id", rejections)
    attributes: list[list[str]] = [[] for _ in read.ids]
    for column, parts in read.values.items():
        if column != "user_id":
            more = _attribute(column.removeprefix("attribute:"), _join(parts), words=False)
            attributes = [texts + added for texts, added in zip(attributes, more, strict=True)]
    known = dict(zip(read.ids, (sorted(set(texts)) for texts in attributes), strict=True))
    for user, texts in known.items():
        if len(texts) > MOST_VALUES:
            raise DataError(
                f"user {user!r} of data.source.users {source.users.path} has {len(texts)} attributes, more "
                f"than {MOST_VALUES}: shorten the lists, or leave that column out of user_columns.attributes"
            )
    return known


def attribute_matrix(attributes: list[list[str]]) -> tuple[sp.csr_matrix, list[str]]:
    """Multi-hot float32 `[N, A]` and the names of its columns, in alphabetical order."""
    names = sorted({value for values in attributes for value in values})
    column = {name: index for index, name in enumerate(names)}
    indptr = np.concatenate([[0], np.cumsum([len(values) for values in attributes])])
    indices = np.asarray([column[value] for values in attributes for value in values], dtype=np.int32)
    data = np.ones(len(indices), dtype=np.float32)
    return sp.csr_matrix((data, indices, indptr), shape=(len(attributes), len(names))), names


@dataclass(frozen=True, kw_only=True)
class _Where:
    """Where item i was read, for errors."""

    file: str
    rows: list[int]
    ids: list[str]

    def error(self, column: str, bad: Sequence[tuple[int, object]], rule: str) -> DataError:
        shown = [
            f"  {self.file}, row {self.rows[i]}, item {self.ids[i]!r}: {value!r}" for i, value in bad[:SHOWN]
        ]
        more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        return DataError(
            f"column {column} of the catalogue: {rule}; {len(bad)} item(s) break this:\n"
            + "\n".join(shown + more)
        )


def _read(batches: Iterable[RawBatch], id_column: str, rejections: Rejections) -> _Columns:
    """The usable rows of a table whose ids are distinct."""
    read, seen = _Columns(), set[str]()
    for batch in batches:
        ids, keep = _keep(batch, id_column, seen, rejections)
        read.ids += ids
        read.rows += batch.rows[keep.to_numpy()].tolist()
        for name, values in batch.columns.items():
            read.values.setdefault(name, []).append(values.take(keep))
    return read


def _keep(
    batch: RawBatch, id_column: str, seen: set[str], rejections: Rejections
) -> tuple[list[str], pa.Array]:
    """The ids of the usable rows, trimmed, and the places of these rows in the batch."""
    ids, keep = [], []
    rejections.rows += len(batch.rows) + len(batch.malformed)
    refused = [
        BadRow(file=batch.file, row=row, column="row", value=text, reason="has a wrong number of fields")
        for row, text in batch.malformed
    ]
    raw = batch.columns[id_column]
    trimmed, faults = judge_ids(raw)
    for index, (item, given) in enumerate(zip(trimmed.to_pylist(), as_text(raw).to_pylist(), strict=True)):
        reasons = [reason for reason, bad in faults.items() if bad[index]]
        reasons += ["stands in an earlier row"] if item in seen else []
        if reasons:
            row, value = int(batch.rows[index]), str(raw[index].as_py())
            refused.append(BadRow(file=batch.file, row=row, column=id_column, value=value, reason=reasons[0]))
        else:
            seen.add(item)
            ids.append(item)
            keep.append(index)
            rejections.noted["ids_with_outer_spaces"] += item != given
    for bad in sorted(refused, key=lambda bad: bad.row):
        rejections.add(bad)
    return ids, pa.array(keep, pa.int64())


def _join(parts: list[pa.Array]) -> pa.Array:
    joined = pa.chunked_array(parts)
    if pa.types.is_dictionary(joined.type):
        joined = joined.cast(joined.type.value_type)
    return joined.combine_chunks()


def _attribute(name: str, values: pa.Array, words: bool) -> list[list[str]]:
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        parts = [[str(value) for value in row or () if value is not None] for row in values.to_pylist()]
    elif words:
        parts = [(text or "").split() for text in as_text(values).to_pylist()]
    else:
        numbers = (
            parse_numbers(values) if not pa.types.is_boolean(values.type) else np.full(len(values), np.nan)
        )
        if np.isfinite(numbers).any() and (np.isfinite(numbers) | is_missing(values)).all():
            parts = _bins(numbers)
        else:
            parts = [(text or "").split("|") for text in as_text(values).to_pylist()]
    return [[f"{name}={value.strip()}" for value in row if value.strip()] for row in parts]


def _bins(numbers: np.ndarray) -> list[list[str]]:
    """Whole numbers stand for themselves; if any has a fraction, all become deciles `[low, high)`."""
    present = np.isfinite(numbers)
    if (numbers[present] == np.floor(numbers[present])).all():
        return [[f"{int(value)}"] if known else [] for value, known in zip(numbers, present, strict=True)]
    edges = np.unique(np.quantile(numbers[present], np.linspace(0, 1, _BINS + 1)))
    bin_of = np.clip(
        np.searchsorted(edges, np.where(present, numbers, edges[0]), side="right") - 1,
        0,
        max(0, len(edges) - 2),
    )
    return [
        [f"{edges[low]:g}..{edges[min(low + 1, len(edges) - 1)]:g}"] if known else []
        for low, known in zip(bin_of, present, strict=True)
    ]


def _years(values: pa.Array) -> list[list[str]]:
    # The decade alone: single years are too many to say what items have in common.
    texts = [(text or "").strip() for text in as_text(values).to_pylist()]
    return [[f"decade={t[:3]}0s"] if re.fullmatch(r"\d{4}", t) else [] for t in texts]


def _embedding(values: pa.Array, where: _Where) -> np.ndarray:
    lists = number_lists(values)
    width = next((len(row) for row in lists if row), 0)
    bad = [
        (i, values[i].as_py())
        for i, row in enumerate(lists)
        if not row or len(row) != width or not np.isfinite(row).all()
    ]
    if bad:
        raise where.error(
            "embedding", bad, f"every item needs {width or 'some'} finite numbers, as the first item has"
        )
    return np.asarray(lists, dtype=np.float32)


def _codes(values: pa.Array, where: _Where) -> np.ndarray:
    lists = number_lists(values)
    levels = next((len(row) for row in lists if row), 0)
    limit = np.iinfo(np.int32).max
    bad = [
        (i, values[i].as_py())
        for i, row in enumerate(lists)
        if not row or len(row) != levels or any(code != code // 1 or not 0 <= code < limit for code in row)
    ]
    if bad:
        rule = (
            f"every item needs {levels or 'some'} whole numbers from 0 on, one per level, "
            "as many as the first item has (or tokens such as <a_1><b_2>, whose letters name the levels)"
        )
        raise where.error("codes", bad, rule)
    return np.asarray(lists, dtype=np.int32)
