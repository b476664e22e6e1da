"""A ranker tried on a few prompts: all of `sluice.learner.ranker.contract.Ranker` that answers can show.

The questions are asked again with the candidates in another order, with each prompt alone, and once more as
they were. Answers are equal when they lie within a hundredth of the range of the scores: a network in half
precision answers a batch of another size a little differently.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from sluice.catalog.errors import RankerError
from sluice.learner.ranker.contract import Ranker, ask_ranker, ask_score, check_output, check_scores
from sluice.learner.ranker.output import RankerOutput

_TOLERANCE = 0.01  # of the range of the scores

Answer = TypeVar("Answer")
Ask = Callable[["Questions"], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a ranker is asked: B prompts with C candidates each."""

    histories: list[np.ndarray]  # B arrays of int32 item rows, oldest first
    candidates: np.ndarray  # int32 [B, C], at least two items a row; padding (-1) at the end of a row
    later_item: int  # a row of the catalogue that the data set does not have yet
    users: np.ndarray  # int32 [B], whose the histories are

    def reordered(self) -> tuple["Questions", np.ndarray]:
        """The candidates of each row turned round, padding left at its place; and the places `[B, C]` in the
        old order.
        """
        places = np.tile(np.arange(self.candidates.shape[1]), (len(self.candidates), 1))
        for row, count in zip(places, (self.candidates >= 0).sum(axis=1), strict=True):
            row[:count] = row[:count][::-1]
        candidates = np.take_along_axis(self.candidates, places, axis=1)
        return replace(self, candidates=candidates), places

    def with_later_item(self) -> "Questions":
        """The last candidate of every row is the item that came later."""
        candidates = self.candidates.copy()
        candidates[np.arange(len(candidates)), (candidates >= 0).sum(axis=1) - 1] = self.later_item
        return replace(self, candidates=candidates)

    def alone(self, row: int) -> "Questions":
        """One of the prompts."""
        rows = slice(row, row + 1)
        return replace(
            self,
            histories=self.histories[rows],
            candidates=self.candidates[rows],
            users=self.users[rows],
        )

    def of_strangers(self) -> "Questions":
        """Nobody knows whose the histories are."""
        return replace(self, users=np.full_like(self.users, -1))

    def copied(self) -> "Questions":
        """What may be written to."""
        histories = [history.copy() for history in self.histories]
        return replace(self, histories=histories, candidates=self.candidates.copy(), users=self.users.copy())


@dataclass(frozen=True, kw_only=True)
class Breach:
    """One way in which a ranker breaks the contract."""

    part: str  # "version", "score" or "predict"
    value: str  # what it is or did
    bound: str  # what it must be or do
    remedy: str


class _Broken(Exception):
    """Carries the breach that leaves nothing to ask further."""

    def __init__(self, breach: Breach) -> None:
        self.breach = breach


def try_ranker(ranker: Ranker, questions: Questions) -> tuple[Breach, ...]:
    """Every breach of the contract that shows on these questions.

    Where `score` gives no usable answer, nothing is compared with it.
    """
    scores, unusable = None, []
    try:
        scores = _answer(_checked_score(ranker), "score", questions)
    except _Broken as broken:
        unusable.append(broken.breach)
    parts = [_version(ranker), iter(unusable), _unchanged(ranker, questions)]
    if scores is not None:
        parts.append(_consistent(_checked_score(ranker), questions, scores))
        if getattr(ranker, "needs_users", False):
            parts.append(_strangers(_checked_score(ranker), "score", questions))
    parts.append(_told_of_users(ranker))
    return tuple(_all_of(*parts, _predictions(ranker, questions, scores)))


def _all_of(*parts: Iterator[Breach]) -> Iterator[Breach]:
    for part in parts:
        try:
            yield from part
        except _Broken as broken:  # what the part would have asked next is not asked
            yield broken.breach


def compare_replicas(one: Ranker, other: Ranker, questions: Questions) -> tuple[Breach, ...]:
    """What two rankers made alike do not have in common. `one` is to have passed `try_ranker`."""
    return tuple(_all_of(_other_version(one, other), _other_answer(one, other, questions)))


def _other_version(one: Ranker, other: Ranker) -> Iterator[Breach]:
    if one.version != other.version:
        yield Breach(
            part="version",
            value=f"two replicas have {one.version!r} and {other.version!r}",
            bound="one version in all replicas",
            remedy="derive it from what was fitted, not from the time or the process",
        )


def _other_answer(one: Ranker, other: Ranker, questions: Questions) -> Iterator[Breach]:
    answers = [_answer(_checked_score(ranker), "score", questions) for ranker in (one, other)]
    if not _alike(*answers):
        yield Breach(
            part="score",
            value=f"two replicas answer differently, {_first_difference(*answers)}",
            bound="one answer from all replicas",
            remedy="load what was fitted, or fix the seed of what is drawn",
        )


def _version(ranker: Ranker) -> Iterator[Breach]:
    version: object = getattr(ranker, "version", None)
    if not isinstance(version, str) or not version:
        yield Breach(
            part="version",
            value=f"{version!r} ({type(version).__name__})",
            bound="text that is not empty",
            remedy="set self.version to a text that names what was fitted",
        )


def _checked_score(ranker: Ranker) -> Ask:
    def ask(questions: Questions) -> np.ndarray:
        answer = ask_score(ranker, questions.histories, questions.candidates, questions.users)
        _check_dtype(answer, "score")
        return check_scores(questions.candidates, answer)

    return ask


def _checked_predict(ranker: Ranker) -> Callable[[Questions], RankerOutput]:
    def ask(questions: Questions) -> RankerOutput:
        answer = ask_ranker(ranker, questions.histories, questions.candidates, questions.users)
        _check_dtype(answer.scores, "predict")
        return check_output(questions.candidates, answer)

    return ask


def _check_dtype(answer: object, part: str) -> None:
    dtype = np.asarray(answer).dtype
    if dtype.kind != "f":
        raise _Broken(
            Breach(
                part=part,
                value=f"the scores are {dtype}",
                bound="floating point, such as float32",
                remedy="return scores.astype(np.float32): padding has to be NaN",
            )
        )


def _answer(ask: Callable[[Questions], Answer], part: str, questions: Questions) -> Answer:
    """The answer to a copy of the questions."""
    try:
        return ask(questions.copied())
    except _Broken:
        raise
    except RankerError as error:
        raise _Broken(_breach_of(part, str(error))) from error
    except Exception as error:  # the ranker is the user's: it may raise anything
        raise _Broken(
            Breach(
                part=part,
                value=f"raised {type(error).__name__}: {error}",
                bound="an answer to every question",
                remedy="try it as docs/extending.md does, in a test of its own",
            )
        ) from error


def _unchanged(ranker: Ranker, questions: Questions) -> Iterator[Breach]:
    """Whether the arguments are still what they were, also after a call that failed."""
    given = questions.copied()
    with contextlib.suppress(Exception):  # told by `_answer`
        ask_score(ranker, given.histories, given.candidates, given.users)
    same = {
        "histories": len(given.histories) == len(questions.histories)
        and all(map(np.array_equal, given.histories, questions.histories)),
        "candidates": np.array_equal(given.candidates, questions.candidates),
    }
    for name in [name for name, is_same in same.items() if not is_same]:
        yield Breach(
            part="score",
            value=f"changed the {name} that it was given",
            bound="arguments stay as they are",
            remedy="work on a copy: histories are views of the data set",
        )


def _breach_of(part: str, message: str) -> Breach:
    return Breach(
        part=part,
        value=message,
        bound="the shape of the candidates, finite for items and NaN at padding (-1)",
        remedy="np.where(candidates < 0, np.nan, scores)",
    )


def _consistent(ask: Ask, questions: Questions, scores: np.ndarray) -> Iterator[Breach]:
    again = _answer(ask, "score", questions)
    if not _alike(scores, again):
        yield Breach(
            part="score",
            value=f"answers the same question differently, {_first_difference(scores, again)}",
            bound="one answer to one question",
            remedy="switch dropout off (model.eval()), and draw nothing in score",
        )
        return  # what follows compares answers too
    turned, places = questions.reordered()
    expected, answer = np.take_along_axis(scores, places, axis=1), _answer(ask, "score", turned)
    if not _alike(expected, answer):
        yield Breach(
            part="score",
            value="depends on the order of the candidates, "
            f"{_first_difference(expected, answer)} when they are turned round",
            bound="an item's score depends on history and item alone",
            remedy="score each candidate by itself",
        )
    rows = range(len(questions.histories))
    alone = np.concatenate([_answer(ask, "score", questions.alone(row)) for row in rows])
    if not _alike(scores, alone):
        yield Breach(
            part="score",
            value=f"depends on the other prompts of the batch, {_first_difference(scores, alone)} alone",
            bound="a row's answer depends on its own history and candidates alone",
            remedy="leave the padding of histories out of what is computed, and normalise over no batch",
        )
    yield from _later(ask, questions)


def _told_of_users(ranker: Ranker) -> Iterator[Breach]:
    """A ranker that takes users and does not say whether it needs them is never told of any."""
    if hasattr(ranker, "needs_users") or "users" not in inspect.signature(ranker.score).parameters:
        return
    yield Breach(
        part="score",
        value="takes users, and the ranker has no needs_users: it is told of none",
        bound="needs_users says whether users are handed to score and predict",
        remedy="set needs_users = True",
    )


def _strangers(ask: Callable[[Questions], object], part: str, questions: Questions) -> Iterator[Breach]:
    try:
        _answer(ask, part, questions.of_strangers())
    except _Broken as broken:
        yield Breach(
            part=part,
            value=f"to users -1, who are not known: {broken.breach.value}",
            bound="a finite score whoever is asking",
            remedy="give users who are not known a row of their own",
        )


def _later(ask: Ask, questions: Questions) -> Iterator[Breach]:
    try:
        _answer(ask, "score", questions.with_later_item())
    except _Broken as broken:
        yield Breach(
            part="score",
            value=f"to item {questions.later_item}, which came to the catalogue later: {broken.breach.value}",
            bound="a finite score for rows from dataset.items on too",
            remedy="give unknown items a score, such as the mean of the known ones",
        )


def _predictions(ranker: Ranker, questions: Questions, scores: np.ndarray | None) -> Iterator[Breach]:
    if getattr(ranker, "predict", None) is None:
        return
    answer = _answer(_checked_predict(ranker), "predict", questions)
    if scores is not None and not _alike(scores, answer.scores):
        yield Breach(
            part="predict",
            value=f"has other scores than score, {_first_difference(scores, answer.scores)}",
            bound="the scores of score",
            remedy="let score return predict(histories, candidates).scores",
        )
    if getattr(ranker, "needs_users", False):
        yield from _strangers(_checked_predict(ranker), "predict", questions)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    known = one[~np.isnan(one)]
    room = _TOLERANCE * float(np.ptp(known)) + 1e-5 * float(np.abs(known).max())
    return bool(np.allclose(one, other, rtol=0, atol=room, equal_nan=True))


def _first_difference(one: np.ndarray, other: np.ndarray) -> str:
    """Where two answers are farthest apart."""
    apart = np.nan_to_num(np.abs(one.astype(np.float64) - other), nan=0.0)
    row, column = np.unravel_index(int(apart.argmax()), apart.shape)
    return f"such as {one[row, column]:g} and then {other[row, column]:g} (prompt {row}, candidate {column})"
