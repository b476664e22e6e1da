"""How the arrays of a trie are made: one sort of all items, then boundaries level by level, on whole arrays.

The tokens of an item are packed into one integer, with the item row in its low bits where both fit into 63, because
sorting plain int64 is several times as fast as sorting indices. Items with more bits are sorted by columns.
"""

import numpy as np

from catalog.errors import DataError
from catalog.trie_tensors import bits_row_bytes

_KEY_BITS = 63
_MOST_NODES = 2**31 - 1
_TOKEN_BYTES = 4


def build_arrays(item_tokens: np.ndarray, retired: np.ndarray) -> dict[str, np.ndarray]:
    """The array fields of `catalog.trie.Trie`.

    Raises:
        DataError: two items have the same tokens, no item is left, or there are too many nodes for int32.
    """
    rows, levels = item_tokens.shape
    live = np.ones(rows, dtype=bool)
    live[retired] = False
    if not live.any():
        raise DataError("the catalogue holds no item, so there is nothing to recommend")
    low = item_tokens.min(axis=0).astype(np.int64)
    width = item_tokens.max(axis=0).astype(np.int64) - low + 1
    order, columns = _sorted(item_tokens, low, width)
    opens = _openings(columns)
    if len(opens[-1]) < rows:
        twin = int(np.setdiff1d(np.arange(rows), opens[-1])[0])
        raise DataError(
            f"items in rows {order[twin - 1]} and {order[twin]} have the same semantic ID; every item needs its own"
        )
    if not live.all():
        keep = live[order]
        order, columns = order[keep], [column[keep] for column in columns]
        opens = _openings(columns)
    opens = [np.zeros(1, dtype=np.int64), *opens]  # leaf position of the first item below each node, by depth
    depth_start = np.concatenate([[0], np.cumsum([len(starts) for starts in opens])])
    if depth_start[-1] > _MOST_NODES:
        raise DataError(f"the catalogue's trie has {depth_start[-1]} nodes, int32 numbers {_MOST_NODES}")
    token = np.full(depth_start[-1], -1, dtype=np.int32)
    first_child = np.full(depth_start[levels] + 1, depth_start[-1], dtype=np.int32)
    most_children = np.empty(levels, dtype=np.int64)
    bits, bits_start = [np.empty(0, dtype=np.uint8)], np.full(levels, -1)
    for level in range(levels):
        own, below = slice(*depth_start[level : level + 2]), slice(*depth_start[level + 1 : level + 3])
        codes = columns[level][opens[level + 1]]
        token[below] = codes + low[level]
        first_child[own] = depth_start[level + 1] + np.searchsorted(opens[level + 1], opens[level])
        counts = np.diff(np.append(first_child[own], depth_start[level + 2]))
        most_children[level] = counts.max()
        row_bytes = bits_row_bytes(int(width[level]))
        if len(counts) * row_bytes <= _TOKEN_BYTES * len(codes):
            bits_start[level] = sum(len(part) for part in bits)
            bits.append(_bits(codes, counts, row_bytes))
    item_leaf = np.full(rows, -1, dtype=np.int32)
    item_leaf[order] = np.arange(len(order), dtype=np.int32)
    return {
        "depth_start": depth_start.astype(np.int64),
        "token": token,
        "first_child": first_child,
        "leaf_item": order.astype(np.int32),
        "item_leaf": item_leaf,
        "token_low": low,
        "width": width,
        "most_children": most_children,
        "bits": np.concatenate(bits),
        "bits_start": bits_start.astype(np.int64),
    }


def _sorted(tokens: np.ndarray, low: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Item rows in the order of their tokens, and the codes (tokens less `low`) of each level in that order."""
    rows, levels = tokens.shape
    level_bits = [int(size - 1).bit_length() for size in width]
    row_bits = int(rows - 1).bit_length()
    if sum(level_bits) + row_bits > _KEY_BITS:
        order = np.lexsort(tokens.T[::-1])
        return order, [(tokens[order, level] - low[level]).astype(np.int32) for level in range(levels)]
    key = np.zeros(rows, dtype=np.int64)
    for level in range(levels):
        key <<= level_bits[level]
        key |= tokens[:, level] - low[level]
    key <<= row_bits
    key |= np.arange(rows)
    key.sort()
    order = key & ((1 << row_bits) - 1)
    columns: list[np.ndarray] = []
    key >>= row_bits
    for level in reversed(range(levels)):
        columns.append((key & ((1 << level_bits[level]) - 1)).astype(np.int32))
        key >>= level_bits[level]
    return order, columns[::-1]


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
    """uint8 `[nodes * row_bytes]`: bit `code` of each node's row is set for each of its `counts` children's codes."""
    place = np.repeat(np.arange(len(counts)) * row_bytes, counts) + (codes >> 3)
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    bits = np.zeros(len(counts) * row_bytes, dtype=np.uint8)
    bits[place[first]] = np.bitwise_or.reduceat(np.left_shift(1, codes & 7, dtype=np.uint8, casting="unsafe"), first)
    return bits
