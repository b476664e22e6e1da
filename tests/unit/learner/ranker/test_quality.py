"""What a ranker is judged by: likeliest items, plain baselines, heads."""

import numpy as np
import pytest
import torch

from sluice.learner.evaluation.baselines import judge_scores
from sluice.learner.ranker.fit import _loss, fit_ranker
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.model import EnsembleRanker, SequenceRanker, build_member
from sluice.learner.ranker.quality import LoggedOutcomes, judge_ranker, likeliest_items, plain_baselines
from sluice.learner.ranker.settings import RankerSettings
from tests.tiny_data import tiny_dataset

NAN = np.nan
SETTINGS = RankerSettings(
    ensemble=2, hidden_size=16, epochs=30, batch_interactions=64, lr=2e-2, negatives=8, dropout=0.1
)


def test_the_likeliest_items_by_hand():
    scores = np.log(np.array([1, NAN, 4, 3, 2], dtype=np.float32)) + 50  # any level
    items, probabilities = likeliest_items(scores, top=2)
    assert items.tolist() == [2, 3]
    assert probabilities == pytest.approx([0.4, 0.3], rel=1e-5)
    items, probabilities = likeliest_items(scores, top=9)
    assert items.tolist() == [2, 3, 4, 0]
    assert probabilities.sum() == pytest.approx(1)


def test_plain_baselines_by_hand():
    # Two users with four and three interactions; the last of each is held out. Item 1 was never rated in
    # training.
    log = LoggedOutcomes(
        users=np.array([0, 0, 0, 0, 1, 1, 1]),
        items=np.array([0, 2, 0, 1, 2, 0, 2]),
        positions=np.array([0, 1, 2, 3, 0, 1, 2]),
        outcomes=np.array([1.0, NAN, 3.0, 9.0, NAN, 5.0, 9.0]),
        fitted=np.array([True, True, True, False, True, True, False]),
    )
    rows = np.array([3, 6, 5, 2])
    rivals = plain_baselines(log, rows)
    assert rivals["user_mean"].tolist() == [2, 5, 3, 1]  # user 1 has rated nothing before position 1: mean 3
    assert rivals["item_mean"].tolist() == [3, 3, 3, 3]  # items 1, 2, 0, 0: nothing, nothing, (1 + 3 + 5) / 3
    log.outcomes[1] = 7.0
    assert plain_baselines(log, rows)["item_mean"].tolist() == [4, 7, 3, 3]
    # And two impressions: item 2 is shown to user 0 behind two interactions, item 1 to user 1 in test.
    shown = {"users": [0, 1], "items": [2, 1], "positions": [2, 2], "outcomes": [0.0, 0.0]}
    shown["fitted"] = [True, False]
    log = LoggedOutcomes(**{name: np.append(values, shown[name]) for name, values in vars(log).items()})
    rivals = plain_baselines(log, np.array([3, 7, 8]))
    assert rivals["item_mean"].tolist() == [3.2, 3.5, 3.2]  # (1 + 7 + 3 + 5 + 0) / 5, (7 + 0) / 2
    assert rivals["user_mean"].tolist() == [2.75, 4, 5]  # (1 + 7 + 3 + 0) / 4; not the impression itself


def constant_ranker(
    biases: list[list[float]], outcomes: list[float], reward: str | None = "rating"
) -> EnsembleRanker:
    """Members that score item i with their bias, and predict the rating 2 + outcome for everything."""
    members = []
    for bias, outcome in zip(biases, outcomes, strict=True):
        member = SequenceRanker(torch.zeros(len(bias), 1), 2, 0.0, ["rating"])
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.zero_()
            member.bias[:-1] = torch.tensor(bias)
            member.heads["rating"].mean.fill_(2.0)
            member.heads["rating"].user.bias.fill_(outcome)
        members.append(member)
    return EnsembleRanker(members, "v", 5, reward)


HISTORIES = [np.array([0], np.int32), np.array([1, 2], np.int32)]
CANDIDATES = np.array([[0, 2, -1], [1, -1, -1]], np.int32)


def test_scores_spread_and_values_by_hand():
    ranker = constant_ranker([[1, 2, 3], [2, 2, 5], [6, 5, 10]], [0.5, 1.0, -0.75])
    found = ranker.predict(HISTORIES, CANDIDATES)
    np.testing.assert_allclose(found.scores, [[3, 6, NAN], [3, NAN, NAN]], rtol=1e-6)
    # item 0: (4 + 1 + 9) / 2; item 2: (9 + 1 + 16) / 2; item 1: (1 + 1 + 4) / 2
    np.testing.assert_allclose(found.spread, [[7**0.5, 13**0.5, NAN], [3**0.5, NAN, NAN]], rtol=1e-6)
    np.testing.assert_allclose(found.values, [[2.25, 2.25, NAN], [2.25, NAN, NAN]], rtol=1e-6)


def test_one_member_has_no_spread_and_no_head_gives_no_values():
    found = constant_ranker([[1, 2, 3]], [0.5], reward=None).predict(HISTORIES, CANDIDATES)
    assert np.isnan(found.spread).all() and np.isnan(found.values).all()
    assert found.scores[0].tolist()[:2] == [1, 3]
    assert np.isnan(
        constant_ranker([[1, 2, 3]], [0.5], reward="click").predict(HISTORIES, CANDIDATES).values
    ).all()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("quality"), outcomes=True, reward="dwell_seconds")


def test_errors_and_calibration_of_a_head_by_hand(dataset):
    ranker = constant_ranker([list(range(20))], [1.0])  # says 3 stars of everything
    judged = judge_ranker(ranker, dataset, "valid", until="fresh")["heads"]["rating"]
    examples = dataset.examples("valid")
    targets = [dataset.target(*pair) for pair in zip(examples.users, examples.positions, strict=True)]
    stars = np.array([1 + int(dataset.item_ids[target][1:]) % 5 for target in targets])
    assert judged["rmse"]["ranker"] == pytest.approx(np.sqrt(np.mean((stars - 3.0) ** 2)))
    assert judged["curve"] == {"predicted": [3.0], "observed": [pytest.approx(stars.mean())], "events": [24]}
    assert judged["ece"] == pytest.approx(abs(3 - stars.mean()))


def test_what_scores_everything_alike_tells_nothing_apart(dataset):
    """Ties stand in order of item row, as in every list, and count half in AUC."""
    quality = judge_ranker(constant_ranker([[0.0] * 20], [0.0]), dataset, "valid", until="fresh")
    assert quality["auc"] == 0.5
    examples = dataset.examples("valid")
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    ranks = [
        1 + int((np.setdiff1d(np.arange(20), dataset.seen(*pair)) < dataset.target(*pair)).sum())
        for pair in pairs
    ]
    assert quality["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    judged = judge_scores(dataset, examples, lambda histories: np.zeros((len(histories), 20)), width=20)
    assert judged.ranks.tolist() == ranks


def test_relevance_is_calibrated_as_the_probability_of_the_next_item(dataset):
    """Every rankable item is equally likely: 13 of 20 are left after 7, and the target is among the first 10
    or not.
    """
    ranker = constant_ranker([[0.0] * 20], [0.0])
    quality = judge_ranker(ranker, dataset, "valid", until="fresh")["relevance"]
    examples, hits = dataset.examples("valid"), 0
    for user, position in zip(examples.users, examples.positions, strict=True):
        rankable = np.setdiff1d(np.arange(20), dataset.seen(user, position))
        hits += dataset.target(user, position) in rankable[:10]
    assert quality["events"] == 240
    assert quality["curve"]["predicted"] == [pytest.approx(1 / 13)]
    assert quality["curve"]["observed"] == [pytest.approx(hits / 240)]


def test_the_softmax_loss_is_corrected_for_the_chance_of_being_a_candidate(dataset, monkeypatch):
    weights = {"rating_weight": 0.0, "click_weight": 0.0, "dwell_weight": 0.5}
    settings = SETTINGS.model_copy(update={"dropout": 0.0, "item_dropout": 0.0, "negatives": 5, **weights})
    torch.manual_seed(0)
    member = build_member(KnownLogs.until(dataset, "fresh"), settings).eval()
    assert list(member.heads) == ["dwell_seconds"]
    shares = torch.linspace(0.01, 0.09, 20)
    rows = [np.arange(3), np.arange(9, 11)]  # three items of one user, two of the next: three positives
    monkeypatch.setattr(
        torch, "randint", lambda low, high, size: torch.arange(high)
    )  # every item is a candidate
    found = _loss(member, dataset, rows, shares, settings)
    ranker = EnsembleRanker([member], "v", 6)
    items = dataset.sequence
    histories, targets = [items[:1], items[:2], items[9:10]], [1, 2, 10]
    scores = ranker.score(histories, np.tile(np.arange(20, dtype=np.int32), (3, 1))).astype(np.float64)
    chance = 1 - (1 - 1 / 20) ** 5 * (1 - shares.double().numpy()) ** 3
    corrected = scores - np.log(chance)
    log_probs = corrected - np.log(np.exp(corrected).sum(axis=1, keepdims=True))
    nll = -np.mean([log_probs[row, items[target]] for row, target in enumerate(targets)])
    head = member.heads["dwell_seconds"]
    expected = ranker.expected_outcomes(histories, items[targets])["dwell_seconds"]
    squared = np.mean((expected - np.log1p(dataset.dwell_seconds[targets])) ** 2) / float(head.deviation) ** 2
    assert found.item() == pytest.approx(nll + 0.5 * squared, rel=1e-4)


def test_the_scale_of_a_head_is_that_of_the_training_part(dataset):
    stars = np.array([1.0 + int(dataset.item_ids[item][1:]) % 5 for item in dataset.sequence])
    training = np.concatenate([stars[9 * user : 9 * user + 7] for user in range(24)])
    head = build_member(KnownLogs.until(dataset, "fresh"), SETTINGS).heads["rating"]
    assert (
        float(head.mean) == pytest.approx(training.mean(), rel=1e-6) != pytest.approx(stars.mean(), rel=1e-4)
    )
    assert float(head.deviation) == pytest.approx(training.std(), rel=1e-6)


def test_a_head_without_weight_is_left_out(dataset, tmp_path):
    settings = SETTINGS.model_copy(
        update={"epochs": 1, "ensemble": 1, "click_weight": 0.0, "dwell_weight": 0.0}
    )
    quality = fit_ranker(dataset, settings, 0, tmp_path)
    assert set(quality["heads"]) == {"rating"}
    ranker = EnsembleRanker.load(tmp_path, dataset)
    assert ranker.heads == ["rating"]
    assert np.isnan(ranker.predict([dataset.history(0, 5, 6)], np.array([[1]], np.int32)).values).all()


def test_heads_for_every_outcome_of_the_log(dataset, tmp_path):
    quality = fit_ranker(dataset, SETTINGS, 0, tmp_path)
    assert set(quality["heads"]) == {"rating", "click", "dwell_seconds"}
    for judged in quality["heads"].values():
        assert judged["rmse"]["ranker"] < judged["rmse"]["user_mean"]
        assert judged["rmse"]["item_mean"] == pytest.approx(0, abs=1e-5)  # the item alone decides here
        assert judged["events"] == quality["users"] == 24
    ranker = EnsembleRanker.load(tmp_path, dataset)
    assert all(float(member.heads["dwell_seconds"].smearing) != 1 for member in ranker.members)
    candidates = np.arange(20, dtype=np.int32)[None]
    seconds = ranker.predict([dataset.history(0, 5, 6)], candidates).values[0, 5:8]
    wanted = [10 * (1 + int(dataset.item_ids[item][1:]) % 3) for item in range(5, 8)]
    np.testing.assert_allclose(seconds, wanted, rtol=0.35)
