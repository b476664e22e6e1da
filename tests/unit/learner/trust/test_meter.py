"""Trust by hand, as of before each item, from the half that has not seen the user, remembered or not."""

import numpy as np
import pytest

from sluice.catalog.errors import RankerError
from sluice.learner.gate.settings import TrustSettings
from sluice.learner.trust.halves import half_of
from sluice.learner.trust.meter import TrustMeter
from tests.unit.learner.trust_cases import LogsInMemory, TableRanker, prompts

# Of three users, user 0 takes items 0 to 5, the others items 6 and up.
LOGS = LogsInMemory([0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [9, 8, 7, 6], items=10, max_history=3)
SETTINGS = TrustSettings(items=3, others=16, at_least=2)


def meter_of(*rankers, dataset=LOGS, settings=SETTINGS, **more):
    first, second = rankers * (2 // len(rankers))
    return TrustMeter(dataset, (first, second), settings, until="fresh", **more)


def test_trust_is_the_mean_place_of_the_last_items():
    """Items 2, 3 and 4 are below, level with and above all that the others took."""
    ranker = TableRanker([0, 0, -1, 5, 9, 0, 5, 5, 5, 5])
    assert meter_of(ranker).measure(prompts((0, 5))).tolist() == [0.5]
    assert meter_of(ranker).measure(prompts((0, 4))).tolist() == pytest.approx([(0 + 0 + 0.5) / 3])
    assert meter_of(ranker).measure(prompts((0, 5))).dtype == np.float32


def test_each_place_is_as_of_before_its_item():
    ranker = TableRanker(np.zeros(10))
    meter_of(ranker).measure(prompts((0, 5)))
    assert sorted(row[0] for _, row in ranker.asked) == [2, 3, 4]
    # `data.max_history` is 3.
    assert ranker.asked_about(2)[0] == (0, 1)
    assert ranker.asked_about(3)[0] == (0, 1, 2)
    assert ranker.asked_about(4)[0] == (1, 2, 3)


def test_no_own_item_is_among_the_others_not_even_a_later_one():
    logs = LogsInMemory([0, 1, 2, 3, 4, 0], [6, 4, 5, 7], items=8, unknown=1)
    ranker = TableRanker(np.zeros(8))
    meter_of(ranker, dataset=logs, settings=TrustSettings(items=9, others=500)).measure(prompts((0, 5)))
    for _, row in ranker.asked:
        # Nobody is known to take 7: it lies behind the fresh part.
        assert set(row[1:]) == {5, 6}


def test_what_a_user_takes_behind_the_known_logs_is_own_once_it_is_history():
    logs = LogsInMemory([0, 1, 2, 5], [4, 5, 6, 7], items=8, unknown=1)
    ranker = TableRanker(np.zeros(8))
    measure = meter_of(ranker, dataset=logs, settings=TrustSettings(items=9, others=500, at_least=1)).measure
    measure(prompts((0, 3)))
    assert set(ranker.asked_about(2)[1]) == {4, 5, 6}
    measure(prompts((0, 4)))
    assert set(ranker.asked_about(5)[1]) == {4, 6}


@pytest.mark.parametrize(("position", "known"), [(1, False), (2, False), (3, True), (6, True)])
def test_a_user_with_few_items_has_no_trust(position, known):
    """The first item has no history, and so no place: at 3 there are two."""
    (trust,) = meter_of(TableRanker(np.zeros(10))).measure(prompts((0, position)))
    assert np.isnan(trust) == (not known)
    assert trust == 0.5 or not known


def test_a_user_who_took_everything_has_no_trust():
    logs = LogsInMemory([0, 1, 2, 3, 4], [1, 2, 3], items=5)
    assert np.isnan(meter_of(TableRanker(np.zeros(5)), dataset=logs).measure(prompts((0, 5)))).all()


def rows(dataset):
    return [(user, at) for user in range(dataset.users) for at in range(1, len(dataset.items_of(user)) + 1)]


@pytest.fixture
def world():
    generator = np.random.default_rng(5)
    sequences = [generator.permutation(40)[:length] for length in (3, 30, 12, 25, 7)]
    return LogsInMemory(*sequences, items=40), generator.normal(size=40)


def test_neither_order_nor_company_nor_memory_change_a_trust(world):
    dataset, scores = world
    pairs = rows(dataset)
    whole = meter_of(TableRanker(scores), dataset=dataset).measure(prompts(*pairs))
    assert len(np.unique(whole)) > 20
    order = np.random.default_rng(1).permutation(len(pairs))
    meter = meter_of(TableRanker(scores), dataset=dataset)
    alone = [meter.measure(prompts(pairs[row]))[0] for row in order]
    np.testing.assert_array_equal(np.asarray(alone), whole[order])
    forgetful = meter_of(TableRanker(scores), dataset=dataset, remember=2)
    np.testing.assert_array_equal([forgetful.measure(prompts(pair))[0] for pair in pairs], whole)


def test_a_place_is_asked_for_once(world):
    dataset, scores = world
    ranker = TableRanker(scores)
    meter = meter_of(ranker, dataset=dataset)
    meter.measure(prompts((1, 20)))
    meter.measure(prompts((1, 20), (1, 21)))
    assert (meter.measured, meter.remembered, len(ranker.asked)) == (4, 3, 4)


def test_the_newest_places_are_remembered(world):
    dataset, scores = world
    ranker = TableRanker(scores)
    meter = meter_of(ranker, dataset=dataset, remember=4)
    meter.measure(prompts((1, 20)))  # three places
    meter.measure(prompts((3, 2)))  # one
    meter.measure(prompts((1, 20)))  # the three again, so that the one is the oldest
    meter.measure(prompts((4, 2)))  # one more than are remembered
    before = meter.measured
    meter.measure(prompts((1, 20), (4, 2)))
    assert meter.measured == before
    meter.measure(prompts((3, 2)))
    assert meter.measured == before + 1


def test_another_version_is_measured_anew(world):
    dataset, scores = world
    ranker = TableRanker(scores)
    meter = meter_of(ranker, dataset=dataset)
    before = meter.measure(prompts((1, 20)))
    ranker.version, ranker.scores = "other", -ranker.scores
    assert meter.measure(prompts((1, 20))) != before
    assert meter.measured == 6


def test_a_user_is_placed_by_the_half_that_was_fitted_without(world):
    """Each ranker knows the items of one half's users, as if it had learned from them, and no others."""
    dataset, _ = world
    halves = [half_of(user_id) for user_id in dataset.user_ids]
    assert set(halves) == {0, 1}
    knowing = [TableRanker(np.full(40, 1.0), version=f"without-{half}") for half in (0, 1)]
    for ranker, half in zip(knowing, (0, 1), strict=True):
        for user, own in enumerate(halves):
            if own != half:
                ranker.scores[dataset.items_of(user)] = 2.0
    meter = meter_of(*knowing, dataset=dataset)
    meter.measure(prompts(*rows(dataset)))
    for ranker, half in zip(knowing, (0, 1), strict=True):
        asked = {history[:2] for history, _ in ranker.asked}
        own = {tuple(dataset.items_of(user)[:2].tolist()) for user in range(5) if halves[user] == half}
        assert {pair for pair in asked if len(pair) == 2} == own


def test_a_score_that_breaks_the_contract_is_named():
    with pytest.raises(RankerError, match="scores must be finite for items"):
        meter_of(TableRanker(np.full(10, np.nan))).measure(prompts((0, 5)))


def test_a_ranker_of_users_is_told_whose_items_it_places():
    class OfUsers(TableRanker):
        needs_users = True

        def __init__(self, scores):
            super().__init__(scores)
            self.users = []

        def score(self, histories, candidates, users):
            self.users += users.tolist()
            return super().score(histories, candidates)

    ranker = OfUsers(np.zeros(10))
    meter_of(ranker).measure(prompts((0, 3)))
    assert ranker.users and set(ranker.users) == {0}
