"""Windows and batches of training histories."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.catalog.errors import DataError
from sluice.learner.batches.windows import cut_windows, epoch_batches
from tests.tiny_data import LENGTH, USERS, tiny_dataset


@given(length=st.integers(2, 60), limit=st.integers(2, 20), data=st.data())
def test_every_interaction_is_in_a_window_of_at_most_the_limit(length, limit, data):
    offset = data.draw(st.integers(0, limit - 1))
    pieces = cut_windows(np.arange(length), limit, offset)
    assert max(len(piece) for piece in pieces) <= limit
    assert all((np.diff(piece) == 1).all() and len(piece) >= 2 for piece in pieces)
    covered = set(np.concatenate(pieces))
    # A first piece of a single interaction has nothing to predict from; nothing else may be missing.
    assert covered >= set(range(1, length))


def test_the_last_window_reaches_back_to_full_length():
    assert [list(piece) for piece in cut_windows(np.arange(7), 3, 2)] == [[0, 1], [2, 3, 4], [4, 5, 6]]
    assert [list(piece) for piece in cut_windows(np.arange(7), 3, 0)] == [[0, 1, 2], [3, 4, 5], [4, 5, 6]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("windows"))


def test_an_epoch_covers_the_training_part_and_nothing_else(dataset):
    generator = np.random.default_rng(0)
    batches = list(
        epoch_batches(
            dataset,
            lengths=dataset.lengths_until("pretrain"),
            batch_interactions=30,
            shuffle_ties=True,
            generator=generator,
        )
    )
    rows = np.unique(np.concatenate([row for batch in batches for row in batch]))
    place = rows - dataset.offsets[np.searchsorted(dataset.offsets, rows, side="right") - 1]
    assert place.max() == LENGTH - 3  # the last two of each user are validation and test
    assert len(rows) >= USERS * (LENGTH - 3)
    for batch in batches:
        assert max(len(row) for row in batch) * len(batch) <= 30


def epoch(dataset, lengths):
    generator = np.random.default_rng(0)
    return list(
        epoch_batches(
            dataset, lengths=lengths, batch_interactions=30, shuffle_ties=False, generator=generator
        )
    )


def test_a_history_of_one_item_has_windows_of_two(tmp_path):
    dataset = tiny_dataset(tmp_path, max_history=1)
    windows = [row for batch in epoch(dataset, dataset.lengths_until("pretrain")) for row in batch]
    assert {len(window) for window in windows} == {2}


def test_a_part_from_which_nothing_can_be_learned_is_refused(dataset):
    with pytest.raises(DataError, match=r"no user of .* has two interactions .*: give a longer log"):
        epoch(dataset, np.ones(dataset.users, dtype=np.int64))


def test_an_epoch_is_a_function_of_its_generator(dataset):
    def epoch(seed):
        batches = epoch_batches(
            dataset,
            lengths=dataset.lengths_until("pretrain"),
            batch_interactions=30,
            shuffle_ties=True,
            generator=np.random.default_rng(seed),
        )
        return [[row.tolist() for row in batch] for batch in batches]

    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
