"""How the arrays of a trie are made: one sort of all items, then boundaries level by level, on whole arrays.

The tokens of an item are packed into one integer, with the item row in its low bits where both fit into 63,
because sorting plain int64 is several times as fast as sorting indices. Items with more bits are sorted by
columns.

What passes over all items does so part by part, a thread per core: numpy lets go of Python's lock in its
loops. The arrays are the same for any number of parts.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from sluice.catalog.errors import DataError
from sluice.catalog.trie.arrays import bits_row_bytes

_KEY_BITS = 63
_MOST_NODES = 2**31 - 1
_TOKEN_BYTES = 4
_PART_ROWS = 1 << 18  # fewer are not worth a thread
T = TypeVar("T")


def build_arrays(item_tokens: np.ndarray, retired: np.ndarray) -> dict[str, np.ndarray]:
    """The array fields of `sluice.catalog.trie.arrays.TrieArrays`.

    Args:
        item_tokens: `[N, L]`.
        retired: item rows that the trie leaves out.

    Raises:
        DataError: two items have the same tokens, no item is left, or there are too many nodes for int32.
    """
    rows, levels = item_tokens.shape
    live = np.ones(rows, dtype=bool)
    live[retired] = False
    if not live.any():
        raise DataError("the catalogue holds no item, so there is nothing to recommend")
    parts = _parts(rows)
    low, high = _extremes(item_tokens, parts)
    width = high - low + 1
    order, columns = _sorted(item_tokens, low, width, parts)
    opens = _openings(columns)
    _refuse_twins(order, opens[-1])
    if not live.all():
        keep = live[order]
        order, columns = order[keep], [column[keep] for column in columns]
        opens = _openings(columns)
    opens = [np.zeros(1, dtype=np.int64), *opens]  # leaf position of the first item below each node, by depth
    depth_start = np.concatenate([[0], np.cumsum([len(starts) for starts in opens])])
    if depth_start[-1] > _MOST_NODES:
        raise DataError(
            f"the catalogue's trie has {depth_start[-1]} nodes, more than the {_MOST_NODES} that int32 can "
            "number: leave items out"
        )
    token = np.full(depth_start[-1], -1, dtype=np.int32)
    first_child = np.full(depth_start[levels] + 1, depth_start[-1], dtype=np.int32)
    most_children = np.empty(levels, dtype=np.int64)
    bits, bits_start = [np.empty(0, dtype=np.uint8)], np.full(levels, -1)
    for level in range(levels):
        parents, children = slice(*depth_start[level : level + 2]), slice(*depth_start[level + 1 : level + 3])
        codes = columns[level][opens[level + 1]]
        token[children] = codes + low[level]
        first_child[parents] = depth_start[level + 1] + np.searchsorted(opens[level + 1], opens[level])
        counts = np.diff(np.append(first_child[parents], depth_start[level + 2]))
        most_children[level] = counts.max()
        row_bytes = bits_row_bytes(int(width[level]))
        if len(counts) * row_bytes <= _TOKEN_BYTES * len(codes):
            bits_start[level] = sum(len(part) for part in bits)
            bits.append(_bits(codes, counts, row_bytes))
    return {
        "depth_start": depth_start.astype(np.int64),
        "token": token,
        "first_child": first_child,
        "leaf_item": order,
        "item_leaf": _inverse(order, rows, parts),
        "token_low": low,
        "width": width,
        "most_children": most_children,
        "bits": np.concatenate(bits),
        "bits_start": bits_start.astype(np.int64),
    }


def _refuse_twins(order: np.ndarray, distinct: np.ndarray) -> None:
    """Raise DataError when some place in `order` is not among the `distinct` ones, which open a new leaf."""
    if len(distinct) < len(order):
        twin = int(np.setdiff1d(np.arange(len(order)), distinct)[0])
        raise DataError(
            f"items in rows {order[twin - 1]} and {order[twin]} have the same semantic ID; "
            "every item needs its own"
        )


def _parts(rows: int) -> list[slice]:
    """The rows in as many parts as there are cores, fewer where there are few rows."""
    count = max(1, min(len(os.sched_getaffinity(0)), rows // _PART_ROWS))
    bounds = [rows * number // count for number in range(count + 1)]
    return [slice(*bounds[number : number + 2]) for number in range(count)]


def _in_parallel(work: Callable[[slice], T], parts: list[slice]) -> list[T]:
    """What `work` gives for each part."""
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))


def _extremes(tokens: np.ndarray, parts: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """int64 `[levels]`: the lowest and the highest token of each level."""
    columns = tokens.T  # a column at a time: numpy is slow on the short rows
    of_parts = _in_parallel(
        lambda part: [(column[part].min(), column[part].max()) for column in columns],
        parts,
    )
    extremes = np.array(of_parts, dtype=np.int64)  # [parts, levels, 2]
    return extremes[..., 0].min(axis=0), extremes[..., 1].max(axis=0)


def _sorted(
    tokens: np.ndarray, low: np.ndarray, width: np.ndarray, parts: list[slice]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Item rows in the order of their tokens, int32 `[rows]`, and in that order the codes of each level.

    A code is a token less the level's `low`.
    """
    rows, levels = tokens.shape
    level_bits = [int(size - 1).bit_length() for size in width]
    row_bits = int(rows - 1).bit_length()
    if sum(level_bits) + row_bits > _KEY_BITS:
        order = np.lexsort(tokens.T[::-1])
        return order.astype(np.int32), [
            (tokens[order, level] - low[level]).astype(np.int32) for level in range(levels)
        ]
    keys = np.empty(rows, dtype=np.int64)
    order = np.empty(rows, dtype=np.int32)
    columns = [np.empty(rows, dtype=np.int32) for _ in range(levels)]

    def pack(part: slice) -> None:
        packed = keys[part]
        packed[:] = tokens[part, 0] - low[0]
        for level in range(1, levels):
            packed <<= level_bits[level]
            packed |= tokens[part, level] - low[level]
        packed <<= row_bits
        packed |= np.arange(part.start, part.stop)

    def sort_and_unpack(part: slice) -> None:
        packed = keys[part]
        packed.sort()
        np.bitwise_and(packed, (1 << row_bits) - 1, out=order[part], casting="unsafe")
        packed >>= row_bits
        for level in reversed(range(levels)):
            np.bitwise_and(packed, (1 << level_bits[level]) - 1, out=columns[level][part], casting="unsafe")
            packed >>= level_bits[level]

    _in_parallel(pack, parts)
    if len(parts) > 1:
        # Each part gets the keys that it will hold when sorted.
        keys.partition([part.start for part in parts[1:]])
    _in_parallel(sort_and_unpack, parts)
    return order, columns


def _inverse(order: np.ndarray, rows: int, parts: list[slice]) -> np.ndarray:
    """int32 `[rows]`: the place of each row in `order`, -1 where it has none."""
    places = np.full(rows, -1, dtype=np.int32)

    def place(part: slice) -> None:
        within = slice(part.start, min(part.stop, len(order)))
        places[order[within]] = np.arange(within.start, max(within.start, within.stop), dtype=np.int32)

    _in_parallel(place, parts)
    return places


def _openings(columns: list[np.ndarray]) -> list[np.ndarray]:
    """Per level, the leaf positions at which a new node below that level begins."""
    changed = np.zeros(len(columns[0]), dtype=bool)
    changed[0] = True
    opens = []
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
        opens.append(np.flatnonzero(changed))
    return opens


def _bits(codes: np.ndarray, counts: np.ndarray, row_bytes: int) -> np.ndarray:
    """The bits of a level, uint8 `[nodes * row_bytes]`: in a node's row those of its children's codes.

    `codes` are those of all children, node by node; `counts` says how many each node has.
    """
    place = np.repeat(np.arange(len(counts)) * row_bytes, counts) + (codes >> 3)
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    bits = np.zeros(len(counts) * row_bytes, dtype=np.uint8)
    bits[place[first]] = np.bitwise_or.reduceat(
        np.left_shift(1, codes & 7, dtype=np.uint8, casting="unsafe"), first
    )
    return bits
