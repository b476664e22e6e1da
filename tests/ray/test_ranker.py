import functools

import numpy as np
import pytest
import ray

from sluice.actors.ranker.pool import BAD_IN_A_ROW, RankerActor, RankerClient
from sluice.catalog.errors import RankerError
from sluice.learner.gate.settings import TrustSettings
from sluice.learner.ranker.load import open_ranker
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.trust.meter import TrustMeter
from tests.ray.conftest import WAIT_S
from tests.rollout_fakes import BrokenRanker, PredictingRanker, RowRanker, TinyDataset
from tests.unit.learner.trust_cases import LogsInMemory, prompts

pytestmark = pytest.mark.ray

HISTORIES = [np.asarray([1, 2, 3], dtype=np.int32)]
CANDIDATES = np.asarray([[4, 5, -1]], dtype=np.int32)
EXPECTED = [[4.03, 5.03, np.nan]]


class Wedged:
    """A replica that never answers."""

    async def predict(self, histories, candidates, examples):
        import asyncio

        await asyncio.Event().wait()


class Liar(RowRanker):
    """Forgets the padding."""

    def score(self, histories, candidates):
        return np.zeros(candidates.shape, dtype=np.float32)


OPTIONS = {"max_concurrency": 1000, "max_task_retries": -1}


@pytest.fixture(scope="module")
def replicas(launch_shared):
    """A good, a broken and a lying one."""
    started = [
        launch_shared(RankerActor, OPTIONS, factory, max_batch=8, max_wait_ms=0.0)
        for factory in (RowRanker, BrokenRanker, Liar)
    ]
    ray.get([handle.version.remote() for handle in started], timeout=WAIT_S)
    return started


def test_the_user_s_ranker_scores_through_the_actor(launch):
    settings = RankerSettings(use="tests.rollout_fakes:RowRanker", options={"scale": 2.0})
    factory = functools.partial(open_ranker, settings, "nowhere", TinyDataset)
    handle = launch(RankerActor, OPTIONS, factory, max_batch=8, max_wait_ms=0.0)
    assert ray.get(handle.version.remote(), timeout=WAIT_S) == "row-1"
    answer = RankerClient((handle,), timeout_s=WAIT_S, attempts=1).predict(HISTORIES, CANDIDATES)
    np.testing.assert_allclose(answer.output.scores, [[8.03, 10.03, np.nan]], rtol=1e-6)
    assert (answer.version, answer.attempts) == ("row-1", 1)


def test_spread_and_values_come_through_the_actor(launch):
    handle = launch(RankerActor, OPTIONS, PredictingRanker, max_batch=8, max_wait_ms=0.0)
    answer = RankerClient((handle,), timeout_s=WAIT_S, attempts=1).predict(HISTORIES, CANDIDATES)
    np.testing.assert_allclose(answer.output.spread, [[0.4, 0.5, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(answer.output.values, [[40, 50, np.nan]], rtol=1e-6)


def test_trust_comes_through_the_actor_where_it_has_a_meter(launch):
    logs = LogsInMemory([0, 1, 2, 3, 4], [5, 6, 7], [7, 6], items=8)
    trust = TrustSettings(items=3, at_least=2)

    def meter(ranker):
        return TrustMeter(logs, (ranker, ranker), trust, until="fresh")

    options = {"max_batch": 8, "max_wait_ms": 0.0}
    asked = HISTORIES * 2, np.repeat(CANDIDATES, 2, axis=0), prompts((0, 5), (0, 1))
    handle = launch(RankerActor, OPTIONS, RowRanker, **options, meter_factory=meter)
    answer = RankerClient((handle,), timeout_s=WAIT_S, attempts=1).predict(*asked)
    # RowRanker puts items 5 to 7 above all that user 0 has.
    np.testing.assert_array_equal(answer.output.trust, [0, np.nan])
    stats = ray.get(handle.stats.remote(), timeout=WAIT_S)
    assert stats.places_measured == 3 and stats.time["trust"] > 0
    without = launch(RankerActor, OPTIONS, RowRanker, **options)
    assert RankerClient((without,), timeout_s=WAIT_S, attempts=1).predict(*asked).output.trust is None


def test_a_broken_wedged_or_lying_replica_costs_one_attempt(launch, replicas):
    good, broken, liar = replicas
    RankerClient((good,), timeout_s=WAIT_S, attempts=1).predict(
        HISTORIES, CANDIDATES
    )  # the first answer takes longest
    for bad, timeout_s in ((broken, WAIT_S), (liar, WAIT_S), (launch(Wedged), 10.0)):
        client = RankerClient((good, bad), timeout_s=timeout_s, attempts=2)
        answers = [client.predict(HISTORIES, CANDIDATES) for _ in range(2)]
        for answer in answers:
            np.testing.assert_allclose(answer.output.scores, EXPECTED, rtol=1e-6)
        assert sorted(answer.attempts for answer in answers) == [1, 2]  # each call begins at the next replica


def test_giving_up_names_every_attempt_and_its_reason(launch, replicas):
    _, broken, liar = replicas
    dead = launch(Wedged, {"max_restarts": 0})
    ray.kill(dead)
    client = RankerClient((dead, broken, liar), timeout_s=WAIT_S, attempts=3)
    with pytest.raises(RankerError) as caught:
        client.predict(HISTORIES, CANDIDATES)
    text = str(caught.value)
    assert "no scores in 3 attempt(s)" in text
    for reason in (
        "ActorDiedError",
        "ZeroDivisionError: no scores today",
        "gave 0.0 to item -1 (row 0, column 2)",
    ):
        assert reason in text


def test_a_ranker_that_never_answers_rightly_is_asked_no_more(launch, replicas):
    """Nor is one that could not be made: its actor is dead for good."""

    def unmade():
        raise RankerError("ranker.use 'mine:R' failed to start")

    _, broken, liar = replicas
    options = {"max_concurrency": 1000, "max_task_retries": -1}
    dead = launch(RankerActor, options, unmade, max_batch=8, max_wait_ms=0.0)
    for handles, reason in (
        ((broken, liar), "no scores today|gave 0.0"),
        ((dead,), "it could not start: .*mine:R"),
    ):
        client = RankerClient(handles, timeout_s=WAIT_S, attempts=2)
        for _ in range(BAD_IN_A_ROW):
            with pytest.raises(RankerError, match="no scores in 2 attempt"):
                client.predict(HISTORIES, CANDIDATES)
        with pytest.raises(RankerError, match=rf"no right answer to 3 requests in a row.*({reason})"):
            client.predict(HISTORIES, CANDIDATES)


def test_a_killed_replica_is_asked_again_once_it_is_replaced(launch):
    handle = launch(RankerActor, OPTIONS, RowRanker, max_batch=4, max_wait_ms=0.0)
    client = RankerClient((handle,), timeout_s=WAIT_S, attempts=3)
    client.predict(HISTORIES, CANDIDATES)
    ray.kill(handle, no_restart=False)
    for _ in range(3):
        np.testing.assert_allclose(client.predict(HISTORIES, CANDIDATES).output.scores, EXPECTED, rtol=1e-6)


def test_a_submitted_call_does_not_wait(launch):
    client = RankerClient((launch(Wedged),), timeout_s=0.2, attempts=2)
    call = client.submit(HISTORIES, CANDIDATES)
    assert not call.ready()
    while not call.ready():
        ray.wait([call.reference], timeout=call.left_s)
    with pytest.raises(
        RankerError, match=r"2 attempt\(s\) of 0.2 s: \(1\) RankerError: no answer within 0.2 s; \(2\)"
    ):
        call.result()


def test_callers_share_batches(launch):
    handle = launch(RankerActor, OPTIONS, RowRanker, max_batch=4, max_wait_ms=1e6)
    client = RankerClient((handle,), timeout_s=WAIT_S, attempts=1)
    calls = [client.submit(HISTORIES, CANDIDATES) for _ in range(4)]
    for call in calls:
        ray.wait([call.reference], timeout=WAIT_S)
        assert call.ready()
        np.testing.assert_allclose(call.result().output.scores, EXPECTED, rtol=1e-6)
    stats = ray.get(handle.stats.remote())
    assert (stats.requests, stats.batches, stats.prompts) == (4, 1, 4)
