"""The semantic-ID alphabet: which token of the policy stands for which code of which level.

An item is L codes, one per level; code c of level l has one token of its own, so a sequence of L tokens names
an item or nothing. The layout depends on the policy's tokenizer (a fresh policy has no other tokens, an
adapted one has its own vocabulary first), the codes do not.
"""

from dataclasses import dataclass

import numpy as np


def token_name(level: int, code: int) -> str:
    """The token's text: `<a_12>` for code 12 of the first level (level 0)."""
    return f"<{chr(ord('a') + level)}_{code}>"


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Where the codes of each level sit in the policy's vocabulary."""

    level_sizes: tuple[int, ...]  # [L] codes per level
    level_offsets: tuple[int, ...]  # [L] token id of code 0 of each level
    pad: int
    bos: int
    eos: int
    vocab_size: int

    @classmethod
    def fresh(cls, level_sizes: tuple[int, ...]) -> "TokenLayout":
        """The layout of a policy built from scratch: PAD, BOS, EOS, then the codes level by level."""
        offsets = tuple(3 + sum(level_sizes[:level]) for level in range(len(level_sizes)))
        return cls(
            level_sizes=level_sizes,
            level_offsets=offsets,
            pad=0,
            bos=1,
            eos=2,
            vocab_size=3 + sum(level_sizes),
        )

    @property
    def levels(self) -> int:
        """L, the number of tokens per item."""
        return len(self.level_sizes)

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """The tokens, int64 `[N, L]`, of the codes `[N, L]` of N items.

        >>> TokenLayout.fresh((2, 3)).encode(np.array([[1, 0], [0, 2]])).tolist()
        [[4, 5], [3, 7]]
        """
        return codes.astype(np.int64) + np.asarray(self.level_offsets, dtype=np.int64)

    def prompt(self, item_tokens: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The token prompt, int64 `[1 + n*L]`, of a history: BOS, then each item's tokens.

        Args:
            item_tokens: int64 `[N, L]`, the tokens of every item row.
            items: `[n]` item rows, oldest first.
        """
        return np.concatenate([np.asarray([self.bos], dtype=np.int64), item_tokens[items].reshape(-1)])
