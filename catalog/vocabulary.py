"""The catalogue as a policy sees it: the tokens of every item, the trie of the live ones, and how it changes.

The codes belong to the data set, the layout to the policy; only together do they say which token sequences are items.

A catalogue has a version. The next one may add items, as further rows, and retire items, which keep their row and their
tokens (histories name them) but leave the trie. Nothing else changes, so an item row means the same in every version.
"""

from dataclasses import dataclass

import numpy as np

from catalog.errors import DataError, PolicyError, RunError
from catalog.tokens import TokenLayout
from catalog.trie import Trie

_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The items of a data set in the tokens of a policy."""

    layout: TokenLayout
    item_tokens: np.ndarray  # int64 [N, L], token ids of each item row
    trie: Trie

    @classmethod
    def of(
        cls, codes: np.ndarray, layout: TokenLayout, *, version: int = 0, retired: np.ndarray = _NONE
    ) -> "Vocabulary":
        """Lay the codes `[N, L]` of a catalogue out in a policy's tokens; item rows in `retired` can't be generated.

        Raises:
            PolicyError: the catalogue has more levels or more codes per level than the policy has tokens for.
            DataError: two items share their codes, or there is no item.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != layout.levels:
            raise PolicyError(
                f"the catalogue's codes have shape {list(codes.shape)}, but the policy has {layout.levels} levels "
                f"{list(layout.level_sizes)}: use the policy that was trained for this data set, or prepare it again"
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
    def _with(cls, layout: TokenLayout, item_tokens: np.ndarray, version: int, retired: np.ndarray) -> "Vocabulary":
        trie = Trie.build(item_tokens, layout.vocab_size, version=version, retired=retired)
        return cls(layout=layout, item_tokens=item_tokens, trie=trie)

    @property
    def version(self) -> int:
        """Of the catalogue."""
        return self.trie.version

    @property
    def retired(self) -> np.ndarray:
        """Item rows [n] that can't be generated."""
        return np.flatnonzero(self.trie.item_leaf < 0)

    def changed(self, *, new_codes: np.ndarray | None = None, retire: np.ndarray = _NONE) -> "Vocabulary":
        """The next version: items with `new_codes` `[n, L]` as further rows, and the item rows in `retire` gone.

        Raises:
            PolicyError: a new item has codes that the policy has no tokens for.
            DataError: a new item has the codes of another, retired ones included; `retire` names no live item; or
                nothing is left.
        """
        retire = np.asarray(retire, dtype=np.int64)
        rows = len(self.item_tokens)
        if len(unknown := retire[(retire < 0) | (retire >= rows)]):
            raise DataError(f"item row {unknown[0]} can't be retired: the catalogue has rows 0..{rows - 1}")
        if len(gone := retire[self.trie.item_leaf[retire] < 0]):
            raise DataError(f"item row {gone[0]} can't be retired: it was retired before version {self.version + 1}")
        item_tokens = self.item_tokens
        if new_codes is not None:
            # Laid out on its own first, so that a code that does not fit is an error that names its row among the new.
            new = Vocabulary.of(new_codes, self.layout)
            item_tokens = np.concatenate([item_tokens, new.item_tokens])
        retired = np.concatenate([self.retired, retire])
        return Vocabulary._with(self.layout, item_tokens, self.version + 1, retired)

    def check_follows(self, before: "Vocabulary") -> None:
        """Refuse to take the place of a catalogue that this one is no later version of.

        Raises:
            DataError: the version is not higher, or an item row has other tokens than before.
        """
        if self.version <= before.version:
            raise DataError(
                f"catalogue version {self.version} can't replace version {before.version}: versions must increase"
            )
        rows = len(before.item_tokens)
        same = self.layout == before.layout and len(self.item_tokens) >= rows
        if not same or not np.array_equal(self.item_tokens[:rows], before.item_tokens):
            raise DataError(
                f"catalogue version {self.version} gives item rows other tokens than version {before.version}; a new "
                "version appends items and retires items, so make it with Vocabulary.changed"
            )


class Catalogues:
    """The newest catalogue and those before it that groups on their way were generated with."""

    def __init__(self, vocabulary: Vocabulary, *, keep: int = 8) -> None:
        """`keep` versions at most."""
        self._versions, self._keep = {vocabulary.version: vocabulary}, keep

    @property
    def newest(self) -> Vocabulary:
        """The one that new requests use."""
        return self._versions[max(self._versions)]

    def add(self, vocabulary: Vocabulary) -> None:
        """A new version; the oldest beyond `keep` is forgotten.

        Raises:
            DataError: it is no later version of the newest.
        """
        vocabulary.check_follows(self.newest)
        self._versions[vocabulary.version] = vocabulary
        if len(self._versions) > self._keep:
            del self._versions[min(self._versions)]

    def of(self, version: int) -> Vocabulary:
        """The catalogue of a version.

        Raises:
            RunError: it has not arrived, or has been forgotten.
        """
        if version not in self._versions:
            raise RunError(
                f"a group was generated with catalogue version {version}; known are {sorted(self._versions)}: publish "
                "a catalogue to the learner before the engines, and not more often than groups are trained"
            )
        return self._versions[version]
