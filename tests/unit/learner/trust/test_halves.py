"""A ranker without each half of the users: the built-in one, and one's own class."""

import numpy as np
import pytest

from sluice.learner.gate.settings import TrustSettings
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings, RankerSettings
from sluice.learner.ranker.wrong_for_some import WrongForSome
from sluice.learner.trust.fit import fit_halves
from sluice.learner.trust.halves import half_of, open_halves, users_of
from sluice.learner.trust.meter import TrustMeter, open_meter
from tests.rollout_fakes import RowRanker
from tests.tiny_data import USERS, tiny_dataset
from tests.unit.learner.trust_cases import LogsInMemory, prompts

KNN = RankerSettings(sequence=False, itemknn=ItemKnnSettings())
WRONG = RankerSettings(use="sluice.learner.ranker.wrong_for_some:WrongForSome", options={"share": 0.5})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("halves"))


def test_every_user_is_in_one_half_by_the_id_alone(dataset):
    first, second = users_of(dataset, 0), users_of(dataset, 1)
    assert sorted([*first, *second]) == list(range(USERS))
    assert min(len(first), len(second)) >= USERS // 4
    assert [half_of(f"u{number}") for number in range(8)] == [1, 1, 1, 0, 1, 1, 1, 1]


def test_logs_without_users_are_those_of_the_others(dataset):
    logs = KnownLogs.until(dataset, "fresh")
    rest = logs.without(np.array([0, 3]))
    assert (rest.lengths[[0, 3]] == 0).all() and (np.delete(rest.lengths, [0, 3]) > 0).all()
    assert logs.lengths.min() > 0
    assert set(rest.interactions()[0]) == set(range(USERS)) - {0, 3}


def own_pairs():
    """User u takes items 2 u and 2 u + 1 thrice over, as nobody else does."""
    return LogsInMemory(*([[2 * user, 2 * user + 1] * 3 for user in range(12)]), items=24)


def test_the_halves_have_not_seen_their_users(tmp_path):
    """Only who has seen the user knows which item goes with which."""
    logs = own_pairs()
    fit_halves(logs, KNN, 0, tmp_path, lambda *_: None)
    rankers = open_halves(RowRanker(), KNN, tmp_path, logs)
    assert rankers[0].version != rankers[1].version
    everything = np.arange(24, dtype=np.int32)[None]
    for user, user_id in enumerate(logs.user_ids):
        places = [ranker.score([np.array([2 * user])], everything)[0].argsort() for ranker in rankers]
        assert 2 * user + 1 in places[1 - half_of(user_id)][-2:]
        assert 2 * user + 1 not in places[half_of(user_id)][-2:]


def test_trust_in_the_built_in_ranker_is_out_of_sample(tmp_path):
    """In sample this ranker looks perfect; it knows nothing of a user that it has not seen."""
    logs = own_pairs()
    fit_halves(logs, KNN, 0, tmp_path, lambda *_: None)
    settings = TrustSettings(items=4, others=32)
    meter = open_meter(
        RowRanker(), trust=settings, settings=KNN, directory=tmp_path, dataset_factory=lambda: logs
    )
    last = prompts(*((user, 6) for user in range(12)))
    assert (meter.measure(last) < 0.5).all()
    halves = open_halves(RowRanker(), KNN, tmp_path, logs)
    in_sample = TrustMeter(logs, halves[::-1], settings, until="fresh")
    assert (in_sample.measure(last) == 1).all()


@pytest.mark.parametrize(
    "settings",
    [
        RankerSettings(epochs=1, hidden_size=8, ensemble=1),
        RankerSettings(sequence=False, ease=EaseSettings(), itemknn=ItemKnnSettings()),
    ],
)
def test_both_kinds_of_the_built_in_ranker_have_halves(dataset, tmp_path, settings):
    told = []
    fit_halves(dataset, settings, 0, tmp_path, lambda done, total, fields: told.append((done, total)))
    first, second = open_halves(RowRanker(), settings, tmp_path, dataset)
    assert first.version != second.version
    assert first.score([np.array([1, 2])], np.array([[3, -1]])).shape == (1, 2)
    if settings.sequence:
        assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


def test_one_s_own_class_is_made_without_each_half_where_it_can_be(dataset):
    whole = WrongForSome(dataset, share=0.5)
    halves = open_halves(whole, WRONG, "nowhere", dataset)
    assert len({whole.version, *(half.version for half in halves)}) == 3
    for half in halves:
        np.testing.assert_array_equal(half.wrong_users, whole.wrong_users)


def test_one_s_own_class_that_cannot_is_asked_itself(dataset):
    ranker = RowRanker()
    assert open_halves(ranker, RankerSettings(use="tests.rollout_fakes:RowRanker"), "nowhere", dataset) == (
        ranker,
        ranker,
    )
