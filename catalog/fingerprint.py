"""What tells one catalogue from another: the tokens of a policy mean the items of one."""

from collections.abc import Sequence

import numpy as np

from sluice.catalog.files import sha256_of


def fingerprint_catalogue(item_ids: Sequence[str], codes: np.ndarray) -> str:
    """16 hex digits of the ids `[N]` and the codes `[N, L]`, whatever the order of the rows.

    >>> one = fingerprint_catalogue(["a", "b"], np.array([[0, 1], [2, 3]]))
    >>> one == fingerprint_catalogue(["b", "a"], np.array([[2, 3], [0, 1]]))
    True
    >>> one == fingerprint_catalogue(["a", "b"], np.array([[2, 3], [0, 1]]))
    False
    """
    order = sorted(range(len(item_ids)), key=item_ids.__getitem__)
    ids = "\0".join(item_ids[row] for row in order).encode()
    return sha256_of([ids, np.ascontiguousarray(codes[order], dtype="<i4").tobytes()])[:16]
