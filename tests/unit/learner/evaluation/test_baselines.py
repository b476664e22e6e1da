import numpy as np
import pytest
import scipy.sparse as sp

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import DataSettings
from sluice.learner.evaluation.baselines import DECAY, WINDOW, ItemKNN, Popularity
from sluice.services.stages.prepare import prepare_data

# Four items; 0 and 1 co-occur 4 times, 1 and 2 twice, 3 never.
COUNTS = sp.csr_matrix(np.array([[0, 4, 0, 0], [4, 0, 2, 0], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float64))
POPULARITY = np.array([4, 16, 1, 9])


def test_popularity_is_the_same_for_every_history():
    scores = Popularity(POPULARITY).score([np.array([0]), np.array([], dtype=np.int32)])
    assert scores.dtype == np.float32
    assert scores.tolist() == [[4, 16, 1, 9]] * 2


def test_itemknn_by_hand():
    # Cosine: 4 / sqrt(4 * 16) = 0.5 between 0 and 1, 2 / sqrt(16 * 1) = 0.5 between 1 and 2.
    scores = ItemKNN(COUNTS, POPULARITY).score([np.array([1, 0]), np.array([0, 1]), np.array([2, 3, 3, 1])])
    assert scores.dtype == np.float32
    expected = [[0.4, 0.5, 0.4, 0], [0.5, 0.4, 0.5, 0], [0.5, 0.5 * 0.512, 0.5, 0]]
    assert DECAY == 0.8
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_itemknn_falls_back_to_popularity():
    knn = ItemKNN(COUNTS, POPULARITY)
    for history in ([], [3]):
        scores = knn.score([np.array(history, dtype=np.int32)])[0]
        assert np.argsort(-scores).tolist() == [1, 3, 0, 2]
    tied = knn.score([np.array([1])])[0]
    assert tied[3] > 0 and tied[3] < 1e-8


def test_itemknn_reads_the_end_of_a_long_history():
    knn = ItemKNN(COUNTS, POPULARITY)
    long = np.array([2] * 500 + [3] * WINDOW + [0])
    np.testing.assert_array_equal(knn.score([long]), knn.score([long[-WINDOW:]]))
    assert knn.score([long])[0, 1] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    return Dataset.open(prepare_data(DataSettings(), tmp_path_factory.mktemp("data") / "ml").directory)


def test_figures_of_movielens(movielens):
    """HR@10 on the test split, seen items excluded; popularity is known from elsewhere to be .0859."""
    examples = movielens.examples("test")
    histories = [
        movielens.history(u, p, None) for u, p in zip(examples.users, examples.positions, strict=True)
    ]
    targets = np.array(
        [movielens.target(u, p) for u, p in zip(examples.users, examples.positions, strict=True)]
    )
    found = {}
    for model in (Popularity.fit(movielens), ItemKNN.fit(movielens)):
        scores = model.score(histories)
        for row, history in zip(scores, histories, strict=True):
            row[history] = -np.inf
        rank = (scores > scores[np.arange(len(targets)), targets][:, None]).sum(axis=1)
        found[type(model).__name__] = float((rank < 10).mean())
    assert found["Popularity"] == pytest.approx(0.0859, abs=0.002)
    assert found["ItemKNN"] == pytest.approx(0.2153, abs=0.002)


def test_both_see_the_training_part_alone(movielens):
    assert Popularity.fit(movielens).score([np.array([0])]).sum() == 100_000 - 2 * 943
