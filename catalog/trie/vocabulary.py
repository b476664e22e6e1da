"""The catalogue as a policy sees it: the tokens of every item, the trie of the live ones, and how it changes.

The codes belong to the data set, the layout to the policy; only together do they say which token sequences
are items.

A catalogue has a version. The next one may add items, as further rows, and retire items, which keep their row
and their tokens (histories name them) but leave the trie. Nothing else changes, so an item row means the same
in every version.
"""

from dataclasses import dataclass, replace

import numpy as np

from sluice.catalog.errors import DataError, PolicyError, RunError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.trie import Trie

_NONE = np.empty(0, dtype=np.int64)
_EARLIER_TRIES = 4  # how many are kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The items of a data set in the tokens of a policy, at one version of the catalogue."""

    layout: TokenLayout
    item_tokens: np.ndarray  # int64 [N, L], token ids of each item row
    trie: Trie
    earlier: tuple[Trie, ...] = ()  # of the versions before, newest first

    @classmethod
    def of(
        cls, codes: np.ndarray, layout: TokenLayout, *, version: int = 0, retired: np.ndarray = _NONE
    ) -> "Vocabulary":
        """Lay the codes `[N, L]` of a catalogue out in a policy's tokens.

        Item rows in `retired` can't be generated.

        >>> layout = TokenLayout.fresh((2, 2))
        >>> Vocabulary.of(np.array([[0, 0], [0, 1], [1, 1]]), layout).item_tokens.tolist()
        [[3, 5], [3, 6], [4, 6]]

        Raises:
            PolicyError: the catalogue has more levels or more codes per level than the policy has tokens for.
            DataError: two items share their codes, or there is no item.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != layout.levels:
            raise PolicyError(
                f"the catalogue's codes have shape {list(codes.shape)}, but the policy has {layout.levels} "
                f"levels of {list(layout.level_sizes)} codes: use the policy that was trained for this data "
                "set, or prepare the data again"
            )
        outside = (codes < 0) | (codes >= np.asarray(layout.level_sizes))
        if outside.any():
            row, level = (int(index) for index in np.argwhere(outside)[0])
            raise PolicyError(
                f"item row {row} has code {codes[row, level]} at level {level}, but the policy has codes "
                f"0..{layout.level_sizes[level] - 1} there: use the policy that was trained for this data set"
            )
        return cls._with(layout, layout.encode(codes), version, retired)

    @classmethod
    def _with(
        cls, layout: TokenLayout, item_tokens: np.ndarray, version: int, retired: np.ndarray
    ) -> "Vocabulary":
        trie = Trie.build(item_tokens, layout.vocab_size, version=version, retired=retired)
        return cls(layout=layout, item_tokens=item_tokens, trie=trie)

    @property
    def version(self) -> int:
        """The catalogue's version, 0 at the start of a run."""
        return self.trie.version

    @property
    def retired(self) -> np.ndarray:
        """Item rows [n] that can't be generated."""
        return np.flatnonzero(self.trie.item_leaf < 0)

    def changed(self, *, new_codes: np.ndarray | None = None, retire: np.ndarray = _NONE) -> "Vocabulary":
        """The next version of the catalogue.

        Items with `new_codes` `[n, L]` come as further rows; the item rows in `retire` can't be generated any
        more.

        >>> first = Vocabulary.of(np.array([[0, 0], [0, 1]]), TokenLayout.fresh((2, 2)))
        >>> second = first.changed(new_codes=np.array([[1, 1]]), retire=np.array([0]))
        >>> second.version, second.retired.tolist(), second.trie.items
        (1, [0], 2)

        Raises:
            PolicyError: a new item has codes that the policy has no tokens for.
            DataError: a new item has the codes of another, retired ones included; `retire` names no live
                item; or nothing is left.
        """
        retire = np.asarray(retire, dtype=np.int64)
        rows = len(self.item_tokens)
        if len(unknown := retire[(retire < 0) | (retire >= rows)]):
            raise DataError(f"item row {unknown[0]} can't be retired: the catalogue has rows 0..{rows - 1}")
        if len(gone := retire[self.trie.item_leaf[retire] < 0]):
            raise DataError(
                f"item row {gone[0]} can't be retired: it was retired before version {self.version + 1}"
            )
        item_tokens = self.item_tokens
        if new_codes is not None:
            # Laid out on its own first: an error about a code then names its row among the new items.
            new = Vocabulary.of(new_codes, self.layout)
            item_tokens = np.concatenate([item_tokens, new.item_tokens])
        retired = np.concatenate([self.retired, retire])
        return Vocabulary._with(self.layout, item_tokens, self.version + 1, retired)

    def after(self, before: "Vocabulary") -> "Vocabulary":
        """This version in the place of `before`.

        The tries of `before` and of a few versions before it are kept, for groups on their way.

        Raises:
            DataError: the version is not higher, or an item row has other tokens than before.
        """
        if self.version <= before.version:
            raise DataError(
                f"catalogue version {self.version} can't replace version {before.version}: "
                "versions must increase"
            )
        kept = self.item_tokens[: len(before.item_tokens)]
        if self.layout != before.layout or not np.array_equal(kept, before.item_tokens):
            raise DataError(
                f"catalogue version {self.version} gives item rows other tokens than version "
                f"{before.version}; a new version only appends and retires items: make it with "
                "Vocabulary.changed"
            )
        tries = {trie.version: trie for trie in (*before.earlier, before.trie, *self.earlier)}
        newest_first = sorted(tries, reverse=True)[:_EARLIER_TRIES]
        return replace(self, earlier=tuple(tries[version] for version in newest_first))

    def trie_of(self, version: int) -> Trie:
        """The trie of this version of the catalogue or of one shortly before it.

        Raises:
            RunError: it has not arrived here, or has been forgotten.
        """
        for trie in (self.trie, *self.earlier):
            if trie.version == version:
                return trie
        known = [trie.version for trie in (self.trie, *self.earlier)]
        raise RunError(
            f"a group was generated with catalogue version {version}, known here are {known}: give the "
            "learner a catalogue before the engines, and change it less often than groups are trained"
        )

    def lookup(self, tokens: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Item rows, int32 `[B, ...]`, of token sequences `[B, ..., L]`; -1 where one is no item.

        Each of the B is looked up in the catalogue of its version `[B]`.

        Raises:
            RunError: a version is not known here.
        """
        items = np.empty(tokens.shape[:-1], dtype=np.int32)
        for version in np.unique(versions).tolist():
            rows = np.flatnonzero(versions == version)
            items[rows] = self.trie_of(version).lookup(tokens[rows])
        return items
