"""A ranker whose answers are wrong several times in a row is asked no more. No Ray is started."""

from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from sluice.actors.ranker import pool
from sluice.actors.ranker.pool import BAD_IN_A_ROW, RankerClient
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.output import RankerOutput

HISTORIES = [np.array([1], dtype=np.int32)]
CANDIDATES = np.array([[4, 5, -1]], dtype=np.int32)
GOOD = (RankerOutput.of(np.array([[0.4, 0.5, np.nan]], dtype=np.float32)), "v1")
ZERO = (RankerOutput.of(np.zeros((1, 3), dtype=np.float32)), "v1")
RAISED = RayTaskError("predict", "", RankerError("the ranker failed: ZeroDivisionError: no scores today"))
LATE = None  # no answer in time


@pytest.fixture
def client(monkeypatch):
    """A client of one replica with two attempts a request; `client.answers` come in turn."""
    answers = []

    def wait(references, timeout=0):
        return (references, []) if answers[0] is not LATE else ([], references)

    def get(reference, timeout):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(reference):
        assert answers.pop(0) is LATE

    monkeypatch.setattr(pool, "ray", SimpleNamespace(wait=wait, get=get, cancel=cancel))
    remote = SimpleNamespace(remote=lambda *_: "reference")
    replica = SimpleNamespace(predict=remote, version=remote)
    made = RankerClient((replica,), timeout_s=0.0, attempts=2)
    made.answers = answers
    return made


def ask(client, *answers):
    """Whether a request got an answer."""
    client.answers[:] = answers
    call = client.submit(HISTORIES, CANDIDATES)
    while not call.ready():
        pass
    assert client.answers == []
    try:
        call.result()
    except RankerError:
        return False
    return True


@pytest.mark.parametrize(
    "bad", [(ZERO, ZERO), (RAISED, RAISED), (ActorDiedError(), ActorDiedError()), (LATE, ZERO)]
)
def test_a_ranker_that_is_wrong_several_times_in_a_row_is_asked_no_more(client, bad):
    for _ in range(BAD_IN_A_ROW):
        assert not ask(client, *bad)
    with pytest.raises(
        RankerError, match="no right answer to 3 requests in a row, so the run ends: "
    ) as told:
        client.submit(HISTORIES, CANDIDATES)
    assert len(str(told.value).splitlines()) == 1


def test_the_sentence_has_the_rankers_own_words(client):
    for _ in range(BAD_IN_A_ROW):
        ask(client, RAISED, RAISED)
    with pytest.raises(RankerError, match="ZeroDivisionError: no scores today"):
        client.submit(HISTORIES, CANDIDATES)


def test_an_answer_between_them_starts_the_count_anew(client):
    for _ in range(2 * BAD_IN_A_ROW):
        assert not ask(client, ZERO, RAISED)
        assert ask(client, ZERO, GOOD)
    for _ in range(BAD_IN_A_ROW - 1):
        assert not ask(client, ZERO, ZERO)
    assert ask(client, GOOD)


@pytest.mark.parametrize("nobody", [LATE, ActorUnavailableError("being replaced", b"0" * 16)])
def test_requests_that_nobody_answered_do_not_count(client, nobody):
    for _ in range(2 * BAD_IN_A_ROW):
        assert not ask(client, nobody, nobody)
