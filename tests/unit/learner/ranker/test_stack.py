"""Several models as one ranker: the sum, its weights, and saving."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.fit import fit_ranker
from sluice.learner.ranker.item_models import Ease
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.load import load_ranker
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings, RankerSettings
from sluice.learner.ranker.stack import StackedRanker, fit_weights, name_version, score_part
from tests.tiny_data import tiny_dataset

SETTINGS = RankerSettings(
    ease=EaseSettings(l2=5.0),
    itemknn=ItemKnnSettings(),
    ensemble=2,
    hidden_size=16,
    epochs=6,
    batch_interactions=64,
    lr=2e-2,
    negatives=8,
    dropout=0.1,
)
HISTORIES = [np.array([3, 4, 5], dtype=np.int32), np.array([9], dtype=np.int32)]
CANDIDATES = np.array([[6, 1, -1], [10, 25, 2]], dtype=np.int32)  # 25 came to the catalogue later


class Constant:
    """A model that gives each item its own score, whatever the history."""

    def __init__(self, scores):
        self._scores = np.asarray(scores, dtype=np.float32)

    def score(self, histories, candidates):
        padded = np.append(self._scores, np.float32(np.nan))
        return padded[np.where(candidates < 0, len(self._scores), candidates)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def fitted(dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fitted")
    done: list[tuple[int, int]] = []
    quality = fit_ranker(dataset, SETTINGS, 0, directory, lambda at, total, _: done.append((at, total)))
    return StackedRanker.load(directory, dataset), quality, directory, done


def test_the_score_is_the_weighted_sum_of_the_parts(fitted):
    ranker = fitted[0]
    assert set(ranker.parts) == {"sequence", "ease", "itemknn"}
    expected = sum(
        ranker.weights[name] * score_part(part, HISTORIES, CANDIDATES) for name, part in ranker.parts.items()
    )
    scores = ranker.score(HISTORIES, CANDIDATES)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert np.isnan(scores).tolist() == (CANDIDATES < 0).tolist()


def test_an_item_that_came_later_is_the_mean_item(fitted, dataset):
    for part in fitted[0].parts.values():
        everything = np.arange(dataset.items, dtype=np.int32)[None]
        mean = np.nanmean(score_part(part, HISTORIES[1:], everything))
        assert score_part(part, HISTORIES[1:], np.array([[25]], np.int32))[0, 0] == pytest.approx(
            mean, abs=1e-4
        )


def test_spread_and_values_are_those_of_the_sequence_model(fitted):
    ranker = fitted[0]
    output, own = ranker.predict(HISTORIES, CANDIDATES), ranker.sequence.predict(HISTORIES, CANDIDATES)
    np.testing.assert_allclose(output.spread, ranker.weights["sequence"] * own.spread, rtol=1e-5)
    np.testing.assert_array_equal(output.values, own.values)
    np.testing.assert_array_equal(output.scores, ranker.score(HISTORIES, CANDIDATES))


def test_the_quality_names_every_part_with_its_weight(fitted, dataset):
    ranker, quality, _, done = fitted
    assert {name: part["weight"] for name, part in quality["parts"].items()} == ranker.weights
    assert all(0 <= part["hr@10"] <= 1 for part in quality["parts"].values())
    assert quality["users"] == len(dataset.examples("valid"))
    assert sum(row["examples"] for row in quality["by_exposure"]) == quality["users"]
    assert [at / total for at, total in done] == pytest.approx(
        sorted(at / total for at, total in done)
    ) or done
    assert max(at / total for at, total in done) == 1


def test_weights_find_what_the_parts_are_worth(dataset):
    """Targets are drawn from softmax(2 a): a counts 2, b nothing, and the opposite of a not -2."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, dataset.items)) / 2
    chances = np.exp(2 * a) / np.exp(2 * a).sum()
    drawn = generator.choice(dataset.items, size=4000, p=chances)
    parts = {"a": Constant(a), "b": Constant(b)}

    class Drawn:
        items = dataset.items
        settings = dataset.settings.model_copy(update={"exclude_seen": False})

        def history(self, user, position, limit):
            return np.array([0], dtype=np.int32)

        def target(self, user, position):
            return int(drawn[user])

    users = np.arange(len(drawn), dtype=np.int32)
    held_out = Examples(users=users, positions=users)
    weights = fit_weights(parts, Drawn(), held_out, generator)
    assert weights["a"] == pytest.approx(2, abs=0.15)
    assert weights["b"] == pytest.approx(0, abs=0.1)
    assert fit_weights({"c": Constant(-a)}, Drawn(), held_out, generator) == {"c": 0}


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_items_that_the_user_has_are_no_rivals_where_they_are_left_out(tmp_path, exclude_seen):
    """The part finds the target, but puts what the user has above it."""
    dataset = tiny_dataset(tmp_path, exclude_seen=exclude_seen, max_history=9)
    held_out = dataset.examples("valid")

    class Next:
        def score(self, histories, candidates):
            scores = np.zeros(candidates.shape, dtype=np.float32)
            for row, history in enumerate(histories):
                owned = np.isin(candidates[row], history)
                scores[row] = 5.0 * owned + (candidates[row] == (history[-1] + 1) % dataset.items)
            return np.where(candidates < 0, np.nan, scores)

    noise = Constant(np.random.default_rng(0).normal(size=dataset.items))
    weights = fit_weights({"x": Next(), "y": noise}, dataset, held_out, np.random.default_rng(0))
    assert (weights["x"] > 1) == exclude_seen


def test_a_saved_stack_is_the_same_ranker(fitted, dataset, tmp_path):
    ranker = fitted[0]
    ranker.save(tmp_path)
    again = load_ranker(SETTINGS, tmp_path, dataset)
    assert again.version == ranker.version and len(ranker.version) == 12
    np.testing.assert_array_equal(again.score(HISTORIES, CANDIDATES), ranker.score(HISTORIES, CANDIDATES))


def test_other_ways_to_score_have_another_version(dataset):
    """Window and decay are no part of what is fitted, and change every score."""
    logs = KnownLogs.until(dataset, "fresh")
    for settings in (EaseSettings(), EaseSettings(decay=0.5), EaseSettings(window=2)):
        parts = {"ease": Ease.fit(logs, settings)}
        versions = {name_version(parts, {"ease": 1.0}) for parts in ({"ease": Ease.fit(logs)}, parts)}
        assert len(versions) == (1 if settings == EaseSettings() else 2)


def test_other_parts_have_another_version(dataset, tmp_path):
    versions = set()
    for number, l2 in enumerate((5.0, 6.0)):
        settings = RankerSettings(sequence=False, ease=EaseSettings(l2=l2))
        quality = fit_ranker(dataset, settings, 0, tmp_path / str(number))
        ranker = load_ranker(settings, tmp_path / str(number), dataset)
        versions.add(ranker.version)
        assert ranker.weights == {"ease": 1.0} and quality["heads"] == {}
        assert np.isnan(ranker.predict(HISTORIES, CANDIDATES).spread).all()
    assert len(versions) == 2


def test_what_is_no_fitted_stack_is_refused(fitted, dataset, tmp_path):
    with pytest.raises(RankerError, match="holds no fitted ranker"):
        StackedRanker.load(tmp_path, dataset)
    larger = SimpleNamespace(items=21)
    fit_ranker(dataset, RankerSettings(sequence=False, ease=EaseSettings()), 0, tmp_path)
    with pytest.raises(RankerError, match="knows 20 items, the catalogue has 21"):
        StackedRanker.load(tmp_path, larger)


def test_nothing_to_fit_the_weights_on(dataset):
    short = replace(KnownLogs.until(dataset, "fresh"), lengths=np.full(dataset.users, 2))
    _, held_out = short.hold_out(0.1)
    with pytest.raises(RankerError, match="enough logs"):
        fit_weights({"x": Constant(np.zeros(dataset.items))}, dataset, held_out, np.random.default_rng(0))


def test_a_ranker_needs_a_part():
    with pytest.raises(ValueError, match="no part"):
        RankerSettings(sequence=False)
    assert RankerSettings(use="mine:Ranker", sequence=False).parts == ()
    assert RankerSettings(itemknn=ItemKnnSettings()).parts == ("sequence", "itemknn")
