"""Weights by inverse propensity: by hand, against a world whose truth is known, and what they choose."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import DataError
from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.evaluation.exposure import (
    check_choice,
    choosing_metrics,
    choosing_score,
    describe_weights,
    weigh_examples,
    weighted_means,
)
from sluice.learner.ranking_metrics import per_user
from sluice.learner.settings import EvaluationSettings

NAN = np.nan


def shown(propensities, places=None):
    """A data set of two users, of whom the second has the last three interactions."""
    return SimpleNamespace(
        propensities=None if propensities is None else np.array(propensities, dtype=np.float32),
        slate_positions=None if places is None else np.array(places, dtype=np.float32),
        offsets=np.array([0, len(propensities or "") - 3, len(propensities or "")]),
    )


def weights(dataset, users, positions, **settings):
    return weigh_examples(dataset, np.array(users), np.array(positions), EvaluationSettings(**settings))


def test_an_example_weighs_what_its_own_target_was_shown_with():
    dataset = shown([0.5, 0.25, 0.5, 0.125, 0.01], [1, 4, 9, 1, 16])
    assert weights(dataset, [0, 1, 1], [1, 0, 2]) == pytest.approx([4 * 2, 2 * 3, 100 * 4])
    assert weights(dataset, [0, 1, 1], [1, 0, 2], examination="none") == pytest.approx([4, 2, 100])
    assert weights(dataset, [0, 1, 1], [1, 0, 2], propensity_clip=7) == pytest.approx([7, 6, 7])
    assert weights(dataset, [0, 1, 1], [1, 0, 2]).dtype == np.float64


def test_what_is_not_known_weighs_nothing():
    dataset = shown([0.5, NAN, 0.5, 0.25, 1.0], [1, 1, NAN, 4, 1])
    assert weights(dataset, [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]).tolist() == [2, 0, 0, 8, 1]
    assert weights(dataset, [0, 1], [1, 0]) is None
    without = dict(examination="none")
    assert weights(dataset, [0, 0, 1, 1, 1], [0, 1, 0, 1, 2], **without).tolist() == [2, 0, 2, 4, 1]


def test_without_propensities_there_are_no_weights_and_without_places_no_examination():
    assert weights(shown(None), [0], [0]) is None
    dataset = shown([0.5, 0.25, 0.5, 0.125])
    assert weights(dataset, [0, 1], [0, 2]).tolist() == [2, 8]
    settings = EvaluationSettings(propensity_clip=9)
    assert describe_weights(dataset, settings) == {"clip": 9, "examination": "none"}
    dataset.slate_positions = np.ones(4)
    assert describe_weights(dataset, settings) == {"clip": 9, "examination": "inverse_sqrt"}


def test_means_are_self_normalised():
    means = weighted_means(np.array([1, 2, 0, 11]), 20, np.array([1.0, 2.0, 5.0, 0.0]))
    assert means["ips_hr@10"] == pytest.approx(3 / 8) and means["ips_hr@1"] == pytest.approx(1 / 8)
    assert means["ips_ndcg@10"] == pytest.approx((1 + 2 * 0.63092975) / 8)
    assert means["ips_mrr"] == pytest.approx((1 + 2 / 2) / 8)
    assert means["effective_examples"] == pytest.approx(64 / 30) and means["ips_examples"] == 3
    assert "ips_hr@50" not in means
    equal = weighted_means(np.array([1, 2, 0, 11]), 20, np.full(4, 7.0))
    plain = per_user(np.array([1, 2, 0, 11]), 20)
    assert all(equal[f"ips_{name}"] == pytest.approx(values.mean()) for name, values in plain.items())
    assert equal["effective_examples"] == pytest.approx(4)


def test_they_undo_what_the_logger_prefers():
    """100 items; the logger shows the first ten nine times in ten, users like the next thirty.

    By what is logged a list of the first ten is the better one, by truth a list of the liked.
    """
    rng = np.random.default_rng(0)
    items = np.arange(100)
    exposure = np.where(items < 10, 0.09, 0.1 / 90)
    liking = np.where(items < 10, 0.2, np.where(items < 40, 0.6, 0.05))
    place = rng.integers(1, 9, 200_000)
    seen = rng.choice(100, size=len(place), p=exposure)
    clicked = rng.random(len(place)) < liking[seen] / np.sqrt(place)
    targets, place = seen[clicked], place[clicked]
    dataset = SimpleNamespace(
        propensities=exposure[targets].astype(np.float32),
        slate_positions=place.astype(np.float32),
        offsets=np.array([0, len(targets)]),
    )
    weighted, logged = {}, {}
    for name, listed in (("popular", items[:10]), ("liked", items[10:20])):
        ranks = np.where(np.isin(targets, listed), 1, 0)
        given = weights(dataset, np.zeros(len(targets), int), np.arange(len(targets)), propensity_clip=1e6)
        weighted[name] = weighted_means(ranks, 10, given)["ips_hr@10"]
        logged[name] = (ranks > 0).mean()
        assert weighted[name] == pytest.approx(liking[listed].sum() / liking.sum(), rel=0.05)
    assert logged["popular"] > 2 * logged["liked"] and weighted["liked"] > 2 * weighted["popular"]


def test_a_summary_has_both_where_the_log_has_propensities():
    catalogue = SimpleNamespace(items=4, prompt_part="pretrain", item_shares=lambda _: np.ones(4) / 4)
    results = UserResults(
        users=np.array([0, 1]),
        positions=np.array([1, 2]),
        ranks=np.array([1, 0]),
        items=np.tile(np.array([[0, 1] + [-1] * 8], dtype=np.int32), (2, 1)),
        invalid=np.zeros(2, dtype=np.int64),
    )
    exposed = shown([0.5, 0.5, 0.5, 0.5, 0.1], [1] * 5)
    dataset = SimpleNamespace(**vars(catalogue), **vars(exposed))
    summary = results.summary(dataset)
    assert summary["hr@10"] == 0.5 and summary["ips_hr@10"] == pytest.approx(2 / 12)
    clipped = results.summary(dataset, EvaluationSettings(propensity_clip=2))
    assert clipped["ips_hr@10"] == pytest.approx(0.5)
    dataset.propensities = None
    assert not any(
        name.startswith("ips_") or name == "effective_examples" for name in results.summary(dataset)
    )


BOTH = {"hr@10": 0.2, "ndcg@10": 0.1, "ips_hr@10": 0.02, "ips_ndcg@10": 0.01, "effective_examples": 100.0}
FEW = BOTH | {"effective_examples": 99.9}


@pytest.mark.parametrize(
    ("select_by", "summary", "chosen"),
    [
        ("auto", BOTH, ("ips_hr@10", "ips_ndcg@10")),
        ("weighted", BOTH, ("ips_hr@10", "ips_ndcg@10")),
        ("logged", BOTH, ("hr@10", "ndcg@10")),
        ("auto", FEW, ("hr@10", "ndcg@10")),
        ("weighted", FEW, ("ips_hr@10", "ips_ndcg@10")),
        ("auto", {"hr@10": 0.2, "ndcg@10": 0.1}, ("hr@10", "ndcg@10")),
        ("logged", {"hr@10": 0.2, "ndcg@10": 0.1}, ("hr@10", "ndcg@10")),
    ],
)
def test_the_best_checkpoint_is_chosen_by_the_weighted_metric_where_there_is_one(select_by, summary, chosen):
    settings = EvaluationSettings(select_by=select_by)
    assert choosing_metrics(summary, settings) == chosen
    assert choosing_score(summary, settings) == tuple(summary[name] for name in chosen)


def test_there_is_no_choosing_by_weights_that_are_not_there():
    with pytest.raises(DataError, match=r"evaluation.select_by is weighted, and no validation example"):
        choosing_score({"hr@10": 0.2, "ndcg@10": 0.1}, EvaluationSettings(select_by="weighted"))


def test_weights_to_choose_by_are_asked_for_before_training():
    dataset, examples = (
        shown([0.5, NAN, 0.5, 0.25, NAN]),
        Examples(users=np.array([0]), positions=np.array([1])),
    )
    with pytest.raises(DataError, match=r"no validation example has a propensity"):
        check_choice(dataset, examples, EvaluationSettings(select_by="weighted"))
    check_choice(dataset, examples, EvaluationSettings())
    known = Examples(users=np.array([0, 1]), positions=np.array([1, 0]))
    check_choice(dataset, known, EvaluationSettings(select_by="weighted"))
