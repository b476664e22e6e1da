"""What is kept of the pairs of items when there are more than the bound."""

import numpy as np
import pytest
import scipy.sparse as sp

from sluice.catalog.data import cooccurrence
from sluice.catalog.data.cooccurrence import CoOccurrence, SharedUsers, keep_strongest, most_pairs

ITEMS = 60


def make_log(users: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users of 8 items each; items of one dozen stand together four times in five."""
    rng = np.random.default_rng(seed)
    dozen = np.repeat(rng.integers(0, 5, users), 8) * 12
    items = np.where(rng.random(8 * users) < 0.8, dozen + rng.integers(0, 12, 8 * users), 0)
    return np.repeat(np.arange(users), 8), np.where(items == 0, rng.integers(0, ITEMS, 8 * users), items)


def count(counts, users: np.ndarray, items: np.ndarray, users_at_a_time: int = 20) -> sp.csr_matrix:
    for start in range(0, len(users), 8 * users_at_a_time):
        part = slice(start, start + 8 * users_at_a_time)
        counts.add(users[part], items[part])
    return counts.matrix()


@pytest.fixture
def small_bound(monkeypatch):
    """1,800 pairs of 3,600: 15 for each item once they are passed."""
    monkeypatch.setattr(cooccurrence, "MOST_PAIRS", 1800)
    monkeypatch.setattr(cooccurrence, "PAIRS_PER_ITEM", 1)
    monkeypatch.setattr(cooccurrence, "_PENDING_PAIRS", 300)


def make(kind: str) -> CoOccurrence | SharedUsers:
    return CoOccurrence(ITEMS, window=4) if kind == "near" else SharedUsers(ITEMS)


@pytest.mark.parametrize("kind", ["near", "shared"])
def test_beyond_the_bound_the_strongest_neighbours_stay(request, kind):
    users, items = make_log()
    exact = count(make(kind), users, items).toarray()
    request.getfixturevalue("small_bound")
    counts = make(kind)
    kept = count(counts, users, items).toarray()
    assert counts._sum.was_cut and counts._sum.matrix.nnz <= 1800
    assert np.diff(counts._sum.strongest().indptr).max() == 15
    assert (kept == kept.T).all() and not kept.diagonal().any()
    assert (kept <= exact + 1e-9).all()
    # The eleven others of an item's dozen are what it stands with; their counts are nearly whole.
    nearest = np.argsort(-exact, axis=1)[:, :8]
    rows = np.arange(ITEMS)[:, None]
    assert (kept[rows, nearest] > 0).mean() > 0.97
    assert kept[rows, nearest].sum() > 0.95 * exact[rows, nearest].sum()


@pytest.mark.parametrize("kind", ["near", "shared"])
def test_within_the_bound_all_is_exact(monkeypatch, kind):
    users, items = make_log(users=40)
    exact = count(make(kind), users, items)
    monkeypatch.setattr(cooccurrence, "MOST_PAIRS", exact.nnz + ITEMS)
    monkeypatch.setattr(cooccurrence, "PAIRS_PER_ITEM", 1)
    counts = make(kind)
    assert (count(counts, users, items) != exact).nnz == 0 and not counts._sum.was_cut


def test_no_sum_is_larger_than_the_bound_by_more_than_one_flush(small_bound, monkeypatch):
    sizes = list[int]()
    add = cooccurrence._BoundedSum.add
    monkeypatch.setattr(
        cooccurrence._BoundedSum, "add", lambda self, more: (sizes.append(more.nnz), add(self, more))[1]
    )
    count(SharedUsers(ITEMS), *make_log(), users_at_a_time=400)
    assert len(sizes) > 5 and max(sizes) <= 1800 + 64


def test_the_bound_grows_with_a_large_catalogue():
    assert most_pairs(10) == most_pairs(262_144) == 2**24 and most_pairs(10**6) == 64 * 10**6


def test_the_strongest_of_a_row_and_the_first_of_equal_ones():
    counts = sp.csr_matrix(np.array([[1.0, 3.0, 2.0, 2.0, 0.0], [0.0, 0.0, 5.0, 0.0, 4.0], [0.0] * 5]))
    assert keep_strongest(counts, 2).toarray().tolist() == [[0, 3, 2, 0, 0], [0, 0, 5, 0, 4], [0] * 5]
    assert keep_strongest(counts, 1).toarray().tolist() == [[0, 3, 0, 0, 0], [0, 0, 5, 0, 0], [0] * 5]


def test_of_a_user_with_very_many_interactions_the_latest_count(monkeypatch):
    monkeypatch.setattr(cooccurrence, "MOST_OF_USER", 2)
    shared = SharedUsers(4)
    shared.add(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 0]))
    expected = np.zeros((4, 4))
    expected[1, 2] = expected[0, 3] = 1 / 2
    assert shared.matrix().toarray() == pytest.approx(expected + expected.T)
