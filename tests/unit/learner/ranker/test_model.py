"""The built-in ranker: scores, padding, saving, fitting."""

import json

import numpy as np
import pytest
import torch

from sluice.catalog.errors import RankerError
from sluice.learner.ranker.fit import fit_ranker
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.model import EnsembleRanker, build_member
from sluice.learner.ranker.quality import judge_ranker
from sluice.learner.ranker.settings import RankerSettings
from tests.tiny_data import tiny_dataset

SETTINGS = RankerSettings(
    ensemble=2, hidden_size=16, epochs=30, batch_interactions=64, lr=2e-2, negatives=8, dropout=0.1
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def fitted(dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fitted")
    quality = fit_ranker(dataset, SETTINGS, 0, directory)
    return EnsembleRanker.load(directory, dataset), quality, directory


def test_fitting_learns_the_log(fitted):
    _, quality, _ = fitted
    assert quality["hr@1"] > 0.8  # the log is deterministic; chance is 1/13
    assert quality["auc"] > 0.95
    errors = quality["heads"]["rating"]["rmse"]
    assert errors["ranker"] < errors["user_mean"]


def test_the_ensemble_is_the_mean_of_its_members(fitted, dataset):
    ranker, _, _ = fitted
    histories, candidates = (
        [dataset.history(0, 5, 6), dataset.history(3, 2, 6)],
        np.array([[1, 2], [3, 4]], np.int32),
    )
    alone = [
        EnsembleRanker([member], "v", 6, "rating").predict(histories, candidates) for member in ranker.members
    ]
    found = ranker.predict(histories, candidates)
    assert found.scores.shape == found.spread.shape == found.values.shape == (2, 2)
    assert found.scores.dtype == found.spread.dtype == found.values.dtype == np.float32
    assert not np.allclose(alone[0].scores, alone[1].scores)
    assert ranker.score(histories, candidates) == pytest.approx((alone[0].scores + alone[1].scores) / 2)
    assert found.scores == pytest.approx(ranker.score(histories, candidates))
    assert found.values == pytest.approx((alone[0].values + alone[1].values) / 2)
    assert np.isnan(alone[0].spread).all()


def test_of_a_long_history_the_newest_items_count(fitted, dataset):
    ranker, _, _ = fitted
    limit, candidates = dataset.settings.max_history, np.arange(8, dtype=np.int32)[None]
    long = dataset.items_of(0)
    assert len(long) > limit
    newest = ranker.score([long[-limit:]], candidates)
    assert ranker.score([long], candidates) == pytest.approx(newest)
    assert ranker.score([long[:limit]], candidates) != pytest.approx(newest)


def test_padding_is_nan_and_changes_nothing_else(fitted, dataset):
    ranker, _, _ = fitted
    history = dataset.history(0, 5, 6)
    alone = ranker.score([history], np.array([[4, 9]], np.int32))
    padded = ranker.score([history, history[:1]], np.array([[4, -1, 9], [0, -1, -1]], np.int32))
    assert np.isnan(padded[0, 1])
    assert np.isnan(padded[1, 1:]).all()
    assert padded[0, [0, 2]] == pytest.approx(alone[0], abs=1e-5)


def test_an_item_that_came_later_is_judged_as_the_mean_item(fitted, dataset):
    ranker, _, _ = fitted
    histories = [dataset.history(0, 5, 6), dataset.history(3, 2, 6)]
    everything = np.tile(np.arange(dataset.items, dtype=np.int32), (2, 1))
    known = ranker.predict(histories, everything)
    later = ranker.predict(histories, np.array([[dataset.items, 4], [dataset.items + 7, -1]], np.int32))
    assert later.scores[:, 0] == pytest.approx(known.scores.mean(axis=1), abs=1e-5)
    assert later.values[:, 0] == pytest.approx(known.values.mean(axis=1), abs=1e-5)
    assert later.scores[0, 1] == pytest.approx(known.scores[0, 4], abs=1e-5)
    assert np.isnan(later.scores[1, 1])


def test_an_empty_history_is_scored(fitted):
    ranker, _, _ = fitted
    assert np.isfinite(ranker.score([np.array([], np.int32)], np.array([[1, 2]], np.int32))).all()


def test_score_is_the_documented_formula(dataset):
    torch.manual_seed(0)
    member = build_member(KnownLogs.until(dataset, "fresh"), SETTINGS).eval()
    with torch.no_grad():
        member.bias.copy_(torch.arange(dataset.items + 1).float())
        vectors = member.embedding.weight + member.attributes @ member.attribute_projection.weight.T
        states, _ = member.encoder(vectors[torch.tensor([[2, 5]])])
        expected = member.query(states[0, -1]) @ vectors[7] + 7.0
    found = EnsembleRanker([member], "v", 6).score([np.array([2, 5], np.int32)], np.array([[7]], np.int32))
    assert float(found[0, 0]) == pytest.approx(float(expected), abs=1e-5)


def test_saved_and_loaded_scores_are_equal(fitted, dataset, tmp_path):
    ranker, _, _ = fitted
    ranker.save(tmp_path)
    again = EnsembleRanker.load(tmp_path, dataset)
    histories, candidates = [dataset.history(0, 5, 6)], np.arange(20, dtype=np.int32)[None]
    assert (again.score(histories, candidates) == ranker.score(histories, candidates)).all()
    assert again.version == ranker.version


def test_another_catalogue_is_refused(fitted, dataset):
    _, _, directory = fitted
    facts = json.loads((directory / "ranker.json").read_text())
    (directory / "ranker.json").write_text(json.dumps(facts | {"items": 21}))
    try:
        with pytest.raises(RankerError, match="knows 21 items, the catalogue has 20"):
            EnsembleRanker.load(directory, dataset)
    finally:
        (directory / "ranker.json").write_text(json.dumps(facts))


def test_no_ranker_is_a_clear_error(dataset, tmp_path):
    with pytest.raises(RankerError, match="holds no fitted ranker"):
        EnsembleRanker.load(tmp_path, dataset)


def test_judging_counts_only_rankable_items(dataset):
    class Ascending:
        heads = ()

        def score(self, histories, candidates):
            return candidates.astype(np.float32)

        def expected_outcomes(self, histories, items, users):
            return {}

    quality = judge_ranker(Ascending(), dataset, "valid", until="fresh")
    examples = dataset.examples("valid")
    ranks = []
    for user, position in zip(examples.users, examples.positions, strict=True):
        seen, target = set(dataset.seen(user, position).tolist()), dataset.target(user, position)
        ranks.append(1 + sum(item > target and item not in seen for item in range(20)))
    assert quality["hr@1"] == pytest.approx(np.mean(np.array(ranks) == 1))
    assert quality["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert quality["auc"] == pytest.approx(np.mean([1 - (rank - 1) / (20 - 7 - 1) for rank in ranks]))
