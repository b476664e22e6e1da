"""The catalogue as a policy sees it: the tokens of every item, and the trie of all of them.

The codes belong to the data set, the layout to the policy; only together do they say which token sequences are items.
"""

from dataclasses import dataclass

import numpy as np

from catalog.errors import PolicyError
from catalog.tokens import TokenLayout
from catalog.trie import Trie


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The items of a data set in the tokens of a policy."""

    layout: TokenLayout
    item_tokens: np.ndarray  # int64 [N, L], token ids of each item row
    trie: Trie

    @classmethod
    def of(cls, codes: np.ndarray, layout: TokenLayout) -> "Vocabulary":
        """Lay the codes `[N, L]` of a catalogue out in a policy's tokens.

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
        item_tokens = layout.encode(codes)
        return cls(layout=layout, item_tokens=item_tokens, trie=Trie.build(item_tokens, layout.vocab_size))
