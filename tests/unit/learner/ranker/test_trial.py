"""Each breach of a ranker's contract is told, once, and a ranker that keeps it has none."""

import numpy as np
import pytest

from sluice.learner.ranker.output import RankerOutput
from sluice.learner.ranker.trial import Questions, compare_replicas, try_ranker
from tests.rollout_fakes import BrokenRanker, PredictingRanker, RowRanker

QUESTIONS = Questions(
    histories=[np.array(items, dtype=np.int32) for items in ([3], [1, 4], [5, 2, 6])],
    candidates=np.array([[0, 1, 2, 3], [7, 2, -1, -1], [4, 5, 6, -1]], dtype=np.int32),
    later_item=8,
    users=np.array([5, 0, 2], dtype=np.int32),
)


class Changed(RowRanker):
    """Its answer is `change` of the right one."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    def score(self, histories, candidates):
        return self._change(super().score(histories, candidates), histories, candidates)


def told(ranker):
    return [(breach.part, breach.value) for breach in try_ranker(ranker, QUESTIONS)]


@pytest.mark.parametrize("ranker", [RowRanker(), PredictingRanker()], ids=["score", "predict"])
def test_a_ranker_that_keeps_the_contract_has_no_breach(ranker):
    assert told(ranker) == []


def test_the_questions_turned_round_keep_their_padding():
    turned, places = QUESTIONS.reordered()
    assert turned.candidates.tolist() == [[3, 2, 1, 0], [2, 7, -1, -1], [6, 5, 4, -1]]
    assert places.tolist() == [[3, 2, 1, 0], [1, 0, 2, 3], [2, 1, 0, 3]]
    assert QUESTIONS.with_later_item().candidates.tolist() == [[0, 1, 2, 8], [7, 8, -1, -1], [4, 5, 8, -1]]


def shifts_by_place(scores, histories, candidates):
    return scores + np.arange(scores.shape[1], dtype=np.float32)


def centred_over_the_batch(scores, histories, candidates):
    return scores - np.nanmean(scores)


def noisy(scores, histories, candidates):
    return scores + np.random.default_rng().normal(size=scores.shape).astype(np.float32)


def ends_at_the_items(scores, histories, candidates):
    if candidates.max() >= 8:
        raise IndexError("index 8 is out of bounds")
    return scores


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda scores, *_: scores[:, :2], "answered with shape (3, 2) to candidates of shape (3, 4)"),
        (lambda scores, *_: scores[:, 0], "answered with shape (3,)"),
        (lambda scores, *_: np.nan_to_num(scores), "gave 0.0 to item -1 (row 1, column 2)"),
        (lambda scores, *_: np.where(scores > 5, np.inf, scores), "gave inf to item 7"),
        (lambda scores, *_: np.where(scores > 5, np.nan, scores), "gave nan to item 7"),
        (lambda scores, *_: np.nan_to_num(scores).astype(int), "the scores are int64"),
        (lambda scores, *_: scores.astype(object), "the scores are object"),
        (lambda scores, *_: None, "the scores are object"),
        (shifts_by_place, "depends on the order of the candidates, such as 6.01 and then 3.01"),
        (centred_over_the_batch, "depends on the other prompts of the batch"),
        (noisy, "answers the same question differently"),
        (ends_at_the_items, "to item 8, which came to the catalogue later: raised IndexError"),
    ],
)
def test_each_breach_of_score_is_told_once(change, value):
    breaches = told(Changed(change))
    assert len(breaches) == 1 and breaches[0][0] == "score" and value in breaches[0][1]


@pytest.mark.parametrize(
    ("place", "name"), [(lambda h, c: h[0], "histories"), (lambda h, c: c[0], "candidates")]
)
def test_a_ranker_that_changes_what_it_is_given_is_told(place, name):
    def change(scores, histories, candidates):
        place(histories, candidates)[0] = 4
        return scores

    assert told(Changed(change)) == [("score", f"changed the {name} that it was given")]


def test_a_ranker_that_empties_the_list_of_histories_is_told():
    assert told(Changed(lambda scores, histories, _: histories.clear() or scores)) == [
        ("score", "changed the histories that it was given")
    ]


@pytest.mark.parametrize("version", [None, 3, ""])
def test_a_version_is_text(version):
    ranker = RowRanker()
    ranker.version = version
    ((part, value),) = told(ranker)
    assert (part, value) == ("version", f"{version!r} ({type(version).__name__})")


def test_all_that_is_wrong_is_told_at_once():
    class Wrong(BrokenRanker):
        version = 7

        def predict(self, histories, candidates):
            return candidates

    assert told(Wrong()) == [
        ("version", "7 (int)"),
        ("score", "raised ZeroDivisionError: no scores today"),
        ("predict", told(Wrong())[2][1]),
    ]
    assert "answered with ndarray, which has no scores, spread, values" in told(Wrong())[2][1]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (
            lambda scores: RankerOutput.of(scores + 1),
            "has other scores than score, such as 7.02 and then 8.02",
        ),
        (lambda scores: RankerOutput.of(scores, spread=-scores), "gave the spread"),
        (lambda scores: RankerOutput.of(scores, values=scores[:1]), "values of the ranker's predict"),
    ],
)
def test_each_breach_of_predict_is_told(answer, value):
    class Predicting(RowRanker):
        def predict(self, histories, candidates):
            return answer(self.score(histories, candidates))

    ((part, text),) = told(Predicting())
    assert part == "predict" and value in text


def test_answers_in_half_precision_are_alike():
    """Rows of another batch come out of such a network a little different."""

    def rounded(scores, histories, candidates):
        return scores + np.float32(0.02 * len(histories))

    assert told(Changed(rounded)) == []
    assert told(Changed(lambda scores, histories, _: scores + np.float32(0.2 * len(histories)))) != []


def test_replicas_have_one_version_and_one_answer():
    one, other = RowRanker(), RowRanker()
    assert compare_replicas(one, other, QUESTIONS) == ()
    other.version = "row-2"
    assert [breach.part for breach in compare_replicas(one, other, QUESTIONS)] == ["version"]
    breaches = compare_replicas(one, RowRanker(scale=2.0), QUESTIONS)
    assert [breach.value[:30] for breach in breaches] == ["two replicas answer differentl"]


def test_a_replica_that_fails_is_told_as_the_first_one_is():
    """Such as one that wants a file or a port for itself."""
    broken = Changed(lambda scores, *_: scores[:, :1])
    broken.version = RowRanker.version
    (breach,) = compare_replicas(RowRanker(), broken, QUESTIONS)
    assert breach.part == "score" and "answered with shape (3, 1)" in breach.value


class OfUsers(RowRanker):
    """Adds what it knows of a user."""

    needs_users = True

    def __init__(self, known):
        super().__init__()
        self._known = known

    def score(self, histories, candidates, users):
        return super().score(histories, candidates) + self._known(users)[:, None].astype(np.float32)


def test_a_ranker_of_users_is_tried_with_them_and_with_strangers():
    seen = []

    def known(users):
        seen.append(users.tolist())
        return users + 1

    assert told(OfUsers(known)) == []
    assert [5, 0, 2] in seen and [5] in seen and [-1, -1, -1] in seen

    def of_the_known(users):
        if users.min() < 0:
            raise KeyError(int(users.min()))
        return users

    ((part, value),) = told(OfUsers(of_the_known))
    assert part == "score" and value == "to users -1, who are not known: raised KeyError: -1"


def test_a_ranker_that_takes_users_says_whether_it_needs_them():
    class Silent(RowRanker):
        def score(self, histories, candidates, users=None):
            return super().score(histories, candidates)

    (breach,) = try_ranker(Silent(), QUESTIONS)
    assert breach.part == "score" and breach.value.startswith(
        "takes users, and the ranker has no needs_users"
    )
    assert breach.remedy == "set needs_users = True"
    for says in (False, True):  # such as the built-in one, where nothing is known of users
        Silent.needs_users = says
        assert told(Silent()) == []


def test_predict_is_asked_for_strangers_too():
    class Predicting(OfUsers):
        def predict(self, histories, candidates, users):
            if users.min() < 0:
                raise KeyError(int(users.min()))
            return RankerOutput.of(self.score(histories, candidates, users))

    ((part, value),) = told(Predicting(lambda users: users + 1))
    assert part == "predict" and value == "to users -1, who are not known: raised KeyError: -1"
