import faiss
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.catalog.data import semantic_ids
from sluice.catalog.data.cooccurrence import CoOccurrence, SharedUsers, mix_counts
from sluice.catalog.data.semantic_ids import (
    fitting_level_sizes,
    item_vectors,
    level_sizes_of,
    ppmi,
    residual_kmeans,
    resolve_collisions,
    truncated_svd,
)
from sluice.catalog.data.settings import SemanticIdSettings

code_arrays = st.integers(1, 4).flatmap(
    lambda levels: st.lists(
        st.lists(st.integers(0, 3), min_size=levels, max_size=levels), min_size=1, max_size=40
    )
)


@given(rows=code_arrays, seed=st.integers(0, 99))
def test_resolved_codes_are_one_to_one_and_keep_the_first_levels(rows, seed):
    codes = np.array(rows, dtype=np.int32)
    popularity = np.random.default_rng(seed).integers(0, 3, len(codes))
    unique = resolve_collisions(codes, popularity)
    assert len({tuple(row) for row in unique.tolist()}) == len(codes)
    assert (unique[:, : codes.shape[1]] == codes).all()
    collides = len({tuple(row) for row in rows}) < len(rows)
    assert unique.shape[1] == codes.shape[1] + collides
    # Within a tuple the collision codes are 0, 1, 2, ... without a gap.
    for row in unique.tolist():
        assert not collides or row[-1] == 0 or [*row[:-1], row[-1] - 1] in unique.tolist()


def test_the_most_popular_item_gets_collision_code_0_then_the_first():
    codes = np.array([[1, 2], [1, 2], [0, 0], [1, 2], [1, 2]])
    unique = resolve_collisions(codes, np.array([3, 9, 0, 3, 5]))
    assert unique.tolist() == [[1, 2, 2], [1, 2, 0], [0, 0, 0], [1, 2, 3], [1, 2, 1]]


def test_level_sizes():
    codes = np.array([[0, 5, 1], [2, 0, 0]])
    assert level_sizes_of(codes) == (3, 6, 2)
    assert level_sizes_of(codes, (8, 8)) == (8, 8, 2)


def test_level_sizes_follow_the_catalogue():
    sizes = {items: fitting_level_sizes(items) for items in (1, 20, 1682, 12_101, 1_000_000, 20_000_000)}
    assert sizes == {
        1: (4, 4),
        20: (16, 32),
        1682: (1024, 32),
        12_101: (8192, 32),
        1_000_000: (8192, 2048),
        20_000_000: (8192, 8192, 8),
    }
    # Nearest on the scale of powers: the turn from 512 to 1024 is at 2 n / 3 = 512 sqrt(2), n = 1086.1.
    assert (fitting_level_sizes(1086)[0], fitting_level_sizes(1087)[0]) == (512, 1024)
    # Room for sixteen times the catalogue: 16 n / 1024 = 32 is at n = 2048.
    assert (fitting_level_sizes(2048), fitting_level_sizes(2049)) == ((1024, 32), (1024, 64))


@settings(max_examples=25, deadline=None)
@given(
    items=st.integers(1, 60),
    dims=st.integers(1, 6),
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    unknown=st.integers(0, 10),
)
def test_residual_kmeans_is_deterministic_and_within_the_level_sizes(items, dims, sizes, seed, unknown):
    vectors = np.random.default_rng(seed).standard_normal((items, dims)).astype(np.float32)
    vectors[:unknown] = 0
    before = vectors.copy()
    given = SemanticIdSettings(iterations=3, seed=seed)
    codes = residual_kmeans(vectors, tuple(sizes), given)
    assert codes.shape == (items, len(sizes)) and codes.dtype == np.int32
    assert (codes >= 0).all() and (codes < np.array(sizes)).all()
    assert (codes == residual_kmeans(vectors, tuple(sizes), given)).all()
    assert (vectors == before).all()


def test_near_items_share_their_first_code_and_levels_code_what_is_left():
    # Two far groups, each of two near pairs: the first code tells the groups apart, the second the pairs.
    vectors = np.array(
        [[10, 1], [10, 1.01], [10, -1], [10, -1.01], [-10, 1], [-10, 1.01], [-10, -1], [-10, -1.01]]
    )
    codes = residual_kmeans(vectors.astype(np.float32), (2, 2), SemanticIdSettings())
    first, second = codes.T.tolist()
    assert first in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert second in ([0, 0, 1, 1] * 2, [1, 1, 0, 0] * 2)


def test_items_of_which_nothing_is_known_do_not_all_collide():
    vectors = np.zeros((64, 8), dtype=np.float32)
    vectors[:32] = np.random.default_rng(0).standard_normal((32, 8))
    codes = residual_kmeans(vectors, (8, 8), SemanticIdSettings())
    assert len({tuple(row) for row in codes[32:].tolist()}) >= 16


def test_cooccurrence_by_hand():
    counted = CoOccurrence(4, window=2)
    counted.add(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 2, 0]))
    counted.add(np.array([2, 2, 2]), np.array([3, 3, 1]))
    far = 2**-0.5
    expected = [
        [0, 1, 1 + far, 0],
        [1, 0, 1, 1 + far],
        [1 + far, 1, 0, 0],
        [0, 1 + far, 0, 0],
    ]
    np.testing.assert_allclose(counted.matrix().toarray(), expected)
    assert counted.popularity.tolist() == [2, 2, 2, 2]


def test_cooccurrence_does_not_depend_on_the_chunks():
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(20), 7), rng.integers(0, 9, 140)
    whole, parts = CoOccurrence(9, window=4), CoOccurrence(9, window=4)
    whole.add(users, items)
    parts.add(users[:70], items[:70])
    parts.matrix()
    parts.add(users[70:], items[70:])
    np.testing.assert_allclose(whole.matrix().toarray(), parts.matrix().toarray())


def test_ppmi_by_hand():
    # Items 0 and 1 go together 3 times, 2 and 3 once, 0 and 2 once.
    counts = np.array([[0, 3, 1, 0], [3, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=np.float64)
    share = np.array([0.4, 0.3, 0.2, 0.1])
    smooth = share**0.75 / (share**0.75).sum()
    expected = np.zeros((4, 4))
    for i, j in [(0, 1), (1, 0), (0, 2), (2, 0), (2, 3), (3, 2)]:
        expected[i, j] = max(0, np.log(counts[i, j] / 10 / (share[i] * smooth[j])))
    assert expected[0, 1] == pytest.approx(0.9411, abs=1e-4)
    np.testing.assert_allclose(ppmi(sp.csr_matrix(counts)).toarray(), expected, rtol=1e-5)


def test_pairs_that_are_rarer_than_chance_have_no_ppmi():
    # Items 0 and 1 have most of the counts, and hardly any with each other.
    counts = np.array([[0, 1, 50, 0], [1, 0, 0, 50], [50, 0, 0, 1], [0, 50, 1, 0]], dtype=np.float64)
    found = ppmi(sp.csr_matrix(counts)).toarray()
    assert found[0, 1] == 0 < found[0, 2]
    assert (found >= 0).all()


def test_ppmi_of_nothing_is_nothing():
    assert ppmi(sp.csr_matrix((3, 3))).nnz == 0


def test_truncated_svd_agrees_with_the_dense_one():
    matrix = np.random.default_rng(1).random((30, 30)) * (np.random.default_rng(2).random((30, 30)) < 0.3)
    left, values, _ = np.linalg.svd(matrix)
    expected = left[:, :5] * np.sqrt(values[:5])
    found = truncated_svd(sp.csr_matrix(matrix), 5, seed=0, power=0.5)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)


def test_attributes_and_embedding_have_the_weights_that_are_set():
    counts = sp.csr_matrix(np.array([[0, 2, 0], [2, 0, 0], [0, 0, 0]], dtype=np.float64))
    names = ["genre=a", "genre=b", "year=1"]
    attributes = sp.csr_matrix(np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=np.float32))
    embedding = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    given = SemanticIdSettings(vector_dims=3, attribute_weight=0.5)
    vectors = item_vectors(counts, attributes, names, embedding, given)
    assert vectors.shape == (3, 3 + 3 + 2)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, :3], axis=1), [1, 1, 0], atol=1e-6)
    root = np.sqrt(0.5)
    # Item 0: genres share one half of the squared norm, the year has the other.
    expected = 0.5 * np.array([[root * root, root * root, root], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(vectors[:, 3:6], expected, atol=1e-6)
    np.testing.assert_allclose(vectors[:, 6:], [[0.6, 0.8], [0, 1], [0, 0]], atol=1e-6)
    assert item_vectors(counts, attributes, names, None, SemanticIdSettings(attribute_weight=0)).shape == (
        3,
        3,
    )


def test_many_attributes_are_reduced_and_keep_their_distances():
    rng = np.random.default_rng(0)
    hot = np.zeros((30, 40), dtype=np.float32)
    for row in hot:
        row[rng.choice(8, 3, replace=False, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]) * 5] = 1
    names = [f"brand={i}" for i in range(40)]
    given = SemanticIdSettings(vector_dims=8, attribute_weight=1)
    vectors = item_vectors(sp.csr_matrix((30, 30)), sp.csr_matrix(hot), names, None, given)[:, 8:]
    assert vectors.shape == (30, 8)
    np.testing.assert_allclose(vectors @ vectors.T, hot @ hot.T / 3, atol=1e-4)


def test_shared_users_by_hand():
    shared = SharedUsers(4)
    shared.add(
        np.array([0, 0, 0, 1, 1]), np.array([0, 1, 0, 1, 2])
    )  # user 0: items 0, 1 (0 twice); user 1: items 1, 2
    shared.add(np.array([2, 2, 2, 2]), np.array([0, 1, 2, 3]))
    matrix = shared.matrix().toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = 1 / 2 + 1 / 4
    expected[1, 2] = 1 / 2 + 1 / 4
    expected[0, 2] = expected[0, 3] = expected[1, 3] = expected[2, 3] = 1 / 4
    assert matrix == pytest.approx(expected + expected.T)


def test_mixed_counts_are_scaled_before_they_are_weighed():
    near = sp.csr_matrix(np.array([[0.0, 3.0], [3.0, 0.0]]))
    shared = sp.csr_matrix(np.array([[0.0, 10.0], [0.0, 0.0]]))
    assert mix_counts(near, shared, 0.25).toarray() == pytest.approx(
        np.array([[0, 0.375 + 0.25], [0.375, 0]])
    )
    assert mix_counts(near, shared, 0.0).toarray() == pytest.approx(np.array([[0, 0.5], [0.5, 0]]))
    assert mix_counts(near, sp.csr_matrix((2, 2)), 0.5).toarray() == pytest.approx(
        np.array([[0, 0.25], [0.25, 0]])
    )


def test_a_large_catalogue_is_trained_in_rounds_until_they_gain_nothing(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    fifty = SemanticIdSettings(iterations=50)

    def distance(codes: np.ndarray) -> float:
        return sum(vectors[codes == code].var(axis=0).sum() * (codes == code).sum() for code in set(codes))

    whole = residual_kmeans(vectors, (16,), fifty)[:, 0]
    iterations, distances, train = [], [], faiss.Kmeans.train

    def watch(self: faiss.Kmeans, rows: np.ndarray, **more) -> float:
        reached = train(self, rows, **more)
        iterations.append(self.cp.niter)
        distances.extend(self.obj)
        return reached

    monkeypatch.setattr(faiss.Kmeans, "train", watch)
    monkeypatch.setattr(semantic_ids, "MANY", 2000)
    shares = []
    rounds = residual_kmeans(vectors, (16,), fifty, shares.append)[:, 0]
    assert 2 <= len(iterations) < 10 and set(iterations) == {5}
    assert sum(shares) == pytest.approx(1) and len(shares) == len(iterations)
    assert distances == sorted(distances, reverse=True)  # a round goes on from the one before
    assert distance(rounds) < 1.05 * distance(whole)
    iterations.clear()
    residual_kmeans(vectors, (16,), SemanticIdSettings(iterations=7))
    assert iterations == [5, 2]


def test_vectors_and_codes_report_all_of_their_work():
    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    shares = []
    residual_kmeans(vectors, (8, 4), SemanticIdSettings(), shares.append)
    assert shares == pytest.approx([8 / 12, 4 / 12])
    shares.clear()
    counts = sp.csr_matrix(np.ones((9, 9)))
    item_vectors(counts, sp.csr_matrix((9, 0)), [], None, SemanticIdSettings(vector_dims=4), shares.append)
    assert sum(shares) == pytest.approx(1) and len(shares) > 1


def test_ppmi_is_worked_out_in_pieces_and_leaves_its_input(monkeypatch):
    dense = np.random.default_rng(0).integers(0, 3, (12, 12)).astype(float)
    counts = sp.csr_matrix(dense + dense.T)
    whole, before = ppmi(counts), counts.toarray()
    monkeypatch.setattr(semantic_ids, "_VALUES", 7)
    assert (ppmi(counts) != whole).nnz == 0 and (counts.toarray() == before).all()
