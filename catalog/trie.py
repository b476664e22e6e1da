"""The prefix trie of all semantic IDs, as flat arrays: which tokens may follow, for a whole batch at once.

Items are sorted by their tokens, so the items below a node are one contiguous range of leaves and its children are
one contiguous range of nodes. A node is an int32; 0 is the root, -1 is off the trie. No operation loops over requests
or items.

An excluded item is taken out per request: a child is forbidden when every leaf below it is excluded.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalog.errors import DataError

DEAD = -1


@dataclass(frozen=True, kw_only=True)
class Trie:
    """CSR trie over N items of L tokens; the `child_count[n]` children of node n start at node `first_child[n]`."""

    levels: int
    vocab_size: int
    token: np.ndarray  # int32 [nodes], the token that leads to a node; -1 for the root
    first_child: np.ndarray  # int32 [nodes]
    child_count: np.ndarray  # int32 [nodes], 0 for leaves
    leaf_low: np.ndarray  # int32 [nodes], first leaf position below a node
    leaf_high: np.ndarray  # int32 [nodes], one past the last
    leaf_item: np.ndarray  # int32 [N], item row of each leaf position
    item_leaf: np.ndarray  # int32 [N], leaf position of each item row
    _edge_key: np.ndarray  # int64 [nodes - 1], parent * vocab_size + token, ascending: where `step` looks a child up

    @classmethod
    def build(cls, item_tokens: np.ndarray, vocab_size: int) -> "Trie":
        """Build from item tokens `[N, L]`.

        Raises:
            DataError: two items have the same tokens, or there is no item.
        """
        count, levels = item_tokens.shape
        if count == 0:
            raise DataError("the catalogue holds no item, so there is nothing to recommend")
        order = np.lexsort(item_tokens.T[::-1])
        ordered = item_tokens[order]
        # new_prefix[i, l]: leaf i opens a new node at depth l + 1
        changed = np.ones((count, levels), dtype=bool)
        changed[1:] = np.cumsum(ordered[1:] != ordered[:-1], axis=1) > 0
        if not changed[:, -1].all():
            twin = int(np.flatnonzero(~changed[:, -1])[0])
            raise DataError(
                f"items in rows {order[twin - 1]} and {order[twin]} have the same semantic ID; every item needs its own"
            )
        token, parent, low = [np.asarray([-1])], [np.asarray([-1])], [np.asarray([0])]
        node_of_leaf, base = np.zeros(count, dtype=np.int64), 1
        for level in range(levels):
            opens = np.flatnonzero(changed[:, level])
            token.append(ordered[opens, level])
            parent.append(node_of_leaf[opens])
            low.append(opens)
            node_of_leaf = base + np.cumsum(changed[:, level]) - 1
            base += len(opens)
        token, parent, low = (np.concatenate(part).astype(np.int64) for part in (token, parent, low))
        child_count = np.bincount(parent[1:], minlength=base)
        # Children are numbered level by level in the order of their parents, so they are contiguous and ascending.
        first_child = np.searchsorted(parent[1:], np.arange(base)) + 1
        depth = np.concatenate([[0]] + [np.full(int(changed[:, level].sum()), level + 1) for level in range(levels)])
        same_level_next = np.append(depth[1:] == depth[:-1], False)
        high = np.where(same_level_next, np.append(low[1:], 0), count)
        item_leaf = np.empty(count, dtype=np.int32)
        item_leaf[order] = np.arange(count, dtype=np.int32)
        return cls(
            levels=levels,
            vocab_size=vocab_size,
            token=token.astype(np.int32),
            first_child=first_child.astype(np.int32),
            child_count=child_count.astype(np.int32),
            leaf_low=low.astype(np.int32),
            leaf_high=high.astype(np.int32),
            leaf_item=order.astype(np.int32),
            item_leaf=item_leaf,
            _edge_key=parent[1:] * vocab_size + token[1:],
        )

    @property
    def items(self) -> int:
        """N."""
        return len(self.leaf_item)

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.token)

    def step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The child of each node along each token (same shapes), DEAD where there is none."""
        nodes, tokens = np.asarray(nodes, dtype=np.int64), np.asarray(tokens)
        key = nodes * self.vocab_size + tokens
        edge = np.minimum(np.searchsorted(self._edge_key, key), len(self._edge_key) - 1)
        in_vocabulary = (tokens >= 0) & (tokens < self.vocab_size)
        found = (nodes >= 0) & in_vocabulary & (self._edge_key[edge] == key)
        return np.where(found, edge + 1, DEAD).astype(np.int32)

    def walk(self, tokens: np.ndarray) -> np.ndarray:
        """Nodes `[..., L + 1]` along token sequences `[..., L]`, root first; DEAD once a sequence leaves the trie."""
        path = [np.zeros(tokens.shape[:-1], dtype=np.int32)]
        for level in range(tokens.shape[-1]):
            path.append(self.step(path[-1], tokens[..., level]))
        return np.stack(path, axis=-1)

    def lookup(self, tokens: np.ndarray) -> np.ndarray:
        """Item rows of token sequences `[..., L]`, -1 where the sequence is no item."""
        node = self.walk(tokens)[..., -1]
        return np.where(node >= 0, self.leaf_item[self.leaf_low[node]], -1).astype(np.int32)

    def mask(
        self, nodes: np.ndarray, exclusions: "Exclusions | None" = None, requests: np.ndarray | None = None
    ) -> np.ndarray:
        """Allowed next tokens, bool `[R, vocab_size]`, for nodes `[R]`; nothing is allowed at a leaf or off the trie.

        `requests` `[R]` says which request of `exclusions` each node belongs to.
        """
        nodes = np.asarray(nodes, dtype=np.int64)
        counts = np.where(nodes >= 0, self.child_count[nodes], 0)
        row = np.repeat(np.arange(len(nodes)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        child = np.repeat(self.first_child[nodes], counts) + within
        if exclusions is not None:
            keep = ~exclusions.covers(self, child, np.asarray(requests)[row])
            row, child = row[keep], child[keep]
        allowed = np.zeros((len(nodes), self.vocab_size), dtype=bool)
        allowed[row, self.token[child]] = True
        return allowed

    def save(self, path: str | Path) -> None:
        """Write the arrays to an `.npz` file."""
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: str | Path) -> "Trie":
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{n: int(arrays[n]) if arrays[n].ndim == 0 else arrays[n] for n in cls.__dataclass_fields__})


class Exclusions:
    """The excluded items of several requests, as one sorted array of (request, leaf position) keys."""

    def __init__(self, trie: Trie, items: list[np.ndarray]) -> None:
        """`items[r]` are the item rows excluded for request r; repeats are allowed."""
        self._stride = trie.items + 1
        keys = [r * self._stride + trie.item_leaf[rows].astype(np.int64) for r, rows in enumerate(items) if len(rows)]
        self._keys = np.unique(np.concatenate(keys)) if keys else np.empty(0, dtype=np.int64)

    def covers(self, trie: Trie, nodes: np.ndarray, requests: np.ndarray) -> np.ndarray:
        """bool: every leaf below `nodes[i]` is excluded for `requests[i]`."""
        low, high = trie.leaf_low[nodes].astype(np.int64), trie.leaf_high[nodes].astype(np.int64)
        base = requests.astype(np.int64) * self._stride
        excluded = np.searchsorted(self._keys, base + high) - np.searchsorted(self._keys, base + low)
        return excluded == high - low
