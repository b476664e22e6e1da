"""Popularity, ItemKNN and EASE by hand, and saved."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from sluice.catalog.errors import RankerError
from sluice.learner.ranker.item_models import Ease, ItemKNN, Popularity
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings
from tests.tiny_data import tiny_dataset

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
    assert ItemKnnSettings().decay == 0.8
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_itemknn_falls_back_to_popularity():
    knn = ItemKNN(COUNTS, POPULARITY)
    for history in ([], [3]):
        scores = knn.score([np.array(history, dtype=np.int32)])[0]
        assert np.argsort(-scores).tolist() == [1, 3, 0, 2]
    tied = knn.score([np.array([1])])[0]
    assert tied[3] > 0 and tied[3] < 1e-8


WINDOW = ItemKnnSettings().window


def test_itemknn_reads_the_end_of_a_long_history():
    knn = ItemKNN(COUNTS, POPULARITY)
    long = np.array([2] * 500 + [3] * WINDOW + [0])
    np.testing.assert_array_equal(knn.score([long]), knn.score([long[-WINDOW:]]))
    assert knn.score([long])[0, 1] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return KnownLogs.until(tiny_dataset(tmp_path_factory.mktemp("item_models")), "pretrain")


def test_ease_is_the_linear_model_that_predicts_each_item_from_the_others(logs):
    """Each column of B solves its own ridge regression, solved here one item at a time."""
    users, items = logs.interactions()
    bags = np.zeros((logs.dataset.users, logs.dataset.items))
    bags[users, items] = 1
    ease = Ease.fit(logs, EaseSettings(l2=2.0, decay=1.0))
    everything = [np.array([item], dtype=np.int32) for item in range(logs.dataset.items)]
    weights = ease.score(everything)  # row j is what item j says of the others
    for item in range(logs.dataset.items):
        others = [other for other in range(logs.dataset.items) if other != item]
        x, y = bags[:, others], bags[:, item]
        expected = np.linalg.solve(x.T @ x + 2.0 * np.eye(len(others)), x.T @ y)
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-5)
        assert weights[item, item] == 0


def test_ease_weighs_the_last_items_of_a_history(logs):
    ease = Ease.fit(logs, EaseSettings(l2=2.0, window=2, decay=0.5))
    single = ease.score([np.array([item], dtype=np.int32) for item in (3, 5)])
    both = ease.score([np.array([7, 3, 5], dtype=np.int32)])
    np.testing.assert_allclose(both[0], 0.5 * single[0] + single[1], atol=1e-6)
    assert ease.score([np.array([], dtype=np.int32)]).tolist() == [[0.0] * logs.dataset.items]


def test_ease_refuses_a_catalogue_that_does_not_fit(logs):
    with pytest.raises(RankerError, match=r"needs 0.0 GB for the 20 items .*memory_gb 1e-09: raise it"):
        Ease.fit(logs, EaseSettings(memory_gb=1e-9))
    assert Ease.needed_gb(12_101) == pytest.approx(1.757, abs=1e-3)


def test_ease_takes_no_more_memory_than_it_says():
    items, users = 2000, np.repeat(np.arange(500), 4)
    consumed = np.random.default_rng(0).integers(items, size=len(users))
    data = SimpleNamespace(items=items, users=500)
    logs = SimpleNamespace(dataset=data, interactions=lambda: (users, consumed))
    tracemalloc.start()
    Ease.fit(logs)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.1e9 * Ease.needed_gb(items)


@pytest.mark.parametrize(
    ("kind", "settings"), [(Ease, EaseSettings(decay=0.7)), (ItemKNN, ItemKnnSettings(decay=0.7))]
)
def test_a_saved_model_scores_the_same(logs, tmp_path, kind, settings):
    model = kind.fit(logs, settings)
    model.save(tmp_path)
    again = kind.load(tmp_path, settings)
    histories = [np.array([1, 2, 3], dtype=np.int32)]
    assert again.items == logs.dataset.items
    assert b"".join(again.contents()) == b"".join(model.contents())
    np.testing.assert_array_equal(again.score(histories), model.score(histories))
