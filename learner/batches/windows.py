"""Training sequences cut from users' histories, batched so that little is padding."""

from collections.abc import Iterator

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import DataError
from sluice.catalog.gaps import drop_items

SHORTEST_WINDOW = 2  # interactions; from one alone there is nothing to learn


def cut_windows(interactions: np.ndarray, limit: int, offset: int) -> list[np.ndarray]:
    """Cut a sequence `[n]` into windows of at most `limit`; `offset` (0..limit-1) moves the cuts.

    Every interaction is in at least one window of two or more, but for a first one that is cut off alone.
    The last window reaches back to full length.
    """
    if len(interactions) <= limit:
        return [interactions]
    ends = [*range(offset, len(interactions), limit), len(interactions)]
    pieces = [interactions[max(0, end - limit) : end] for end in ends]
    return [piece for piece in pieces if len(piece) >= SHORTEST_WINDOW]


def epoch_batches(
    dataset: Dataset,
    *,
    lengths: np.ndarray,
    batch_interactions: int,
    shuffle_ties: bool,
    generator: np.random.Generator,
    item_dropout: float = 0.0,
) -> Iterator[list[np.ndarray]]:
    """One epoch over the leading interactions of users, as batches of windows of interaction rows.

    Args:
        dataset: a row indexes its `sequence`, `ratings` and `timestamps`.
        lengths: int64 `[U]`, how many interactions of each user to learn from
            (`Dataset.lengths_until`).
        batch_interactions: most windows x longest window of a batch.
        shuffle_ties: put interactions of one user and timestamp in random order.
        generator: decides cuts, ties, losses and the order of the batches.
        item_dropout: each window loses a share of its interactions drawn from 0..item_dropout, so that what
            follows is predicted from other histories each epoch.

    Raises:
        DataError: no user has two of these interactions, so there is nothing to predict from another.
    """
    limit = max(SHORTEST_WINDOW, dataset.settings.max_history)
    pieces: list[np.ndarray] = []
    for user, length in enumerate(lengths):
        if length < SHORTEST_WINDOW:
            continue
        rows = np.arange(dataset.offsets[user], dataset.offsets[user] + length)
        if shuffle_ties:
            rows = rows[np.lexsort((generator.random(length), dataset.timestamps[rows]))]
        cut = cut_windows(rows, limit, int(generator.integers(limit)))
        pieces.extend(drop_items(piece, item_dropout, generator, least=SHORTEST_WINDOW) for piece in cut)
    if not pieces:
        raise DataError(
            f"no user of {dataset.directory} has two interactions in the part that is learned from: give "
            "a longer log, or a larger part by data.split"
        )
    sizes = np.array([len(piece) for piece in pieces])
    # Like lengths together, but not always the same ones.
    order = np.argsort(sizes + 4 * generator.random(len(pieces)))
    batches: list[list[np.ndarray]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, sizes[index])
        if batches[-1] and longest * (len(batches[-1]) + 1) > batch_interactions:
            batches.append([])
            longest = sizes[index]
        batches[-1].append(pieces[index])
    for index in generator.permutation(len(batches)):
        yield batches[index]
