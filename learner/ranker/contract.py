"""What a ranker must do, how it is asked, and the checks of its answer.

`Ranker` is the one contract of all rankers, the built-in one and yours. `sluice.learner.ranker.trial` tries a
ranker on all of it.
"""

import warnings
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from sluice.catalog.errors import RankerError
from sluice.learner.ranker.output import FIELDS, RankerOutput


class Ranker(Protocol):
    """Anything that scores candidates. This is the whole contract of a ranker, the built-in one and yours.

    `ranker.use: package.module:Class` names a class of yours. docs/extending.md has an example.

    - It is made as `Class(dataset, **ranker.options)` in every process that asks it, so the module has to be
      importable on every node. `dataset` is a `sluice.catalog.data.dataset.Dataset`.
    - It needs `version` and `score`. It may have `predict` (`PredictingRanker`), and be told whose the
      histories are (`UserRanker`).
    - One call comes at a time, from any thread. A call may hold prompts of several callers, so a row's answer
      must not depend on the other rows, nor an item's score on the order of the candidates.
    - The same question gets the same answer, from every replica. What a call is given stays as it is.
    - Item rows of the data set are 0 to `dataset.items` - 1. Higher rows are items that came to the catalogue
      later; they need a score too.

    `sluice config check --deep` and the head of every run try all of this on three prompts
    (`sluice.learner.ranker.trial`). In a run, prompts whose answer breaks `check_output`, or for which the
    ranker raises, are given up and counted as `invalid`. Where that is all prompts of a question, it is asked
    of another replica, `ranker_pool.attempts` times in all, and three such questions in a row end the run.

    >>> class Newest:
    ...     version = "1"
    ...     def score(self, histories, candidates):
    ...         return np.where(candidates < 0, np.nan, candidates).astype(np.float32)
    >>> histories = [np.array([3, 1], dtype=np.int32), np.array([2], dtype=np.int32)]
    >>> Newest().score(histories, np.array([[0, 4], [7, -1]]))
    array([[ 0.,  4.],
           [ 7., nan]], dtype=float32)
    """

    # Text that names what was fitted, not empty. It goes into every rollout group, so it must change when
    # scores do, and all replicas of a run must have the same.
    version: str

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """Scores `[B, C]`: the shape of `candidates`, floating point (float32 is what is kept), higher is
        better.

        They are finite for every item, and NaN at padding and nowhere else.

        Args:
            histories: B arrays of item rows (int32), oldest first, at most `data.max_history` long.
            candidates: int32 `[B, C]` item rows, -1 is padding.
        """


class UserRanker(Ranker, Protocol):
    """A ranker that wants to know whose the histories are, say for the users' attributes
    (`Dataset.user_attributes`). It says so by `needs_users`; `score`, and `predict` if it has one, then get
    the keyword `users`.
    """

    needs_users: bool  # True: it is given `users`

    def score(
        self, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Ranker.score`. `users` int32 `[B]` are user rows of the data set, -1: not known."""


class PredictingRanker(Ranker, Protocol):
    """A ranker that knows more of its candidates than a score. Rollouts then ask `predict` in the place of
    `score`; the judge at the end of a run asks `score`.
    """

    def predict(self, histories: list[np.ndarray], candidates: np.ndarray) -> RankerOutput:
        """The scores of `score`, their spread over an ensemble and the predicted logged reward.

        `RankerOutput.of(scores, spread=..., values=...)` leaves out what is not known. A spread is at least
        0, and a value is in the unit of the log. Both are finite for items and NaN at padding, like scores.
        """


def ask_score(
    ranker: Ranker, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
) -> np.ndarray:
    """Ask the ranker's `score`, with the `users` int `[B]` where it needs them; the answer is unchecked.

    None: nobody is known.
    """
    return ranker.score(histories, candidates, **_named_users(ranker, histories, users))


def _named_users(
    ranker: Ranker, histories: list[np.ndarray], users: np.ndarray | None
) -> dict[str, np.ndarray]:
    if not getattr(ranker, "needs_users", False):
        return {}
    known = np.full(len(histories), -1) if users is None else users
    return {"users": np.array(known, dtype=np.int32)}


def ask_ranker(
    ranker: Ranker, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
) -> RankerOutput:
    """Ask the ranker's `predict` where it has one, otherwise its `score`; the answer is unchecked.

    `users` int `[B]` are whose the histories are, for rankers that need it; None: nobody is known.

    >>> class Same:
    ...     version = "1"
    ...     def score(self, histories, candidates):
    ...         return np.ones(candidates.shape, dtype=np.float32)
    >>> answer = ask_ranker(Same(), [np.array([0])], np.array([[1, 2]]))
    >>> answer.scores.tolist(), answer.spread.tolist()
    ([[1.0, 1.0]], [[nan, nan]])

    A ranker whose `predict` still has its former name, `assess`, is asked by that, with a warning.

    Raises:
        RankerError: `predict` answered with something that has no scores, spread and values.
    """
    predict = getattr(ranker, "predict", None)
    if predict is None and (predict := getattr(ranker, "assess", None)) is not None:
        _warn_of_assess(type(ranker).__name__)
    if predict is None:
        return RankerOutput.of(ask_score(ranker, histories, candidates, users))
    answer = predict(histories, candidates, **_named_users(ranker, histories, users))
    missing = [name for name in FIELDS if not hasattr(answer, name)]
    if missing:
        raise RankerError(
            f"the ranker's predict answered with {type(answer).__name__}, which has no {', '.join(missing)}: "
            "return a sluice.learner.ranker.output.RankerOutput, for example "
            "RankerOutput.of(scores, spread=spread)"
        )
    return RankerOutput(**{name: getattr(answer, name) for name in FIELDS})


@lru_cache
def _warn_of_assess(ranker: str) -> None:
    warnings.warn(
        f"{ranker}.assess is called predict now: rename it, the former name goes with the next release",
        FutureWarning,
        stacklevel=2,
    )


def check_scores(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The ranker's scores as float32 `[B, C]`, for candidates int32 `[B, C]` (-1: padding).

    Raises:
        RankerError: it has another shape than the question, or is not NaN exactly at the padding.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != candidates.shape:
        raise RankerError(
            f"the ranker answered with shape {scores.shape} to candidates of shape {candidates.shape}"
        )
    wrong = np.isfinite(scores) != (candidates >= 0)
    wrong |= np.isnan(scores) != (candidates < 0)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise RankerError(
            f"the ranker gave {scores[row, column]} to item {candidates[row, column]} (row {row}, column "
            f"{column}); scores must be finite for items and NaN at padding (-1)"
        )
    return scores


def check_output(candidates: np.ndarray, output: RankerOutput) -> RankerOutput:
    """The ranker's output as float32 `[B, C]`, for candidates int32 `[B, C]` (-1: padding).

    Raises:
        RankerError: the scores break `check_scores`, or the spread or the values do and are not NaN
            throughout, or a spread is negative.
    """
    checked: dict[str, Any] = {"scores": check_scores(candidates, output.scores)}
    for name in ("spread", "values"):
        answer = np.asarray(getattr(output, name), dtype=np.float32)
        try:
            unknown = answer.shape == candidates.shape and np.isnan(answer).all()
            checked[name] = answer if unknown else check_scores(candidates, answer)
        except RankerError as error:
            raise RankerError(
                f"{name} of the ranker's predict: {error}, or NaN everywhere if not known"
            ) from None
    if (checked["spread"] < 0).any():
        raise RankerError(
            f"the ranker's predict gave the spread {np.nanmin(checked['spread']):g}; a deviation is 0 or more"
        )
    return replace(output, **checked)


def spare_rows(candidates: np.ndarray, output: RankerOutput) -> RankerOutput:
    """`check_output` that gives up only the rows (prompts) whose answer is wrong: they are in `wrong`,
    with zeros in the place of what they held.

    >>> candidates = np.array([[4], [5]])
    >>> answer = spare_rows(candidates, RankerOutput.of(np.array([[0.5], [np.nan]])))
    >>> answer.scores.tolist(), answer.wrong[1].split(";")[0]
    ([[0.5], [0.0]], 'the ranker gave nan to item 5 (row 0, column 0)')

    Raises:
        RankerError: all rows are wrong, or the shape of the answer is.
    """
    try:
        return check_output(candidates, output)
    except RankerError as error:
        whole = error
    shapes = {np.shape(getattr(output, name)) for name in FIELDS}
    if shapes != {candidates.shape} or len(candidates) == 1:
        raise whole
    unknown = {name: bool(np.isnan(getattr(output, name)).all()) for name in ("spread", "values")}
    wrong = {}
    for row in range(len(candidates)):
        try:
            part = check_output(candidates[row : row + 1], output.cut(row, 1, candidates.shape[1]))
            for name in (name for name, is_unknown in unknown.items() if not is_unknown):
                check_scores(candidates[row : row + 1], getattr(part, name))
        except RankerError as error:
            wrong[row] = str(error)
    if len(wrong) == len(candidates):
        raise whole
    zeros = np.where(candidates >= 0, 0.0, np.nan).astype(np.float32)
    spared: dict[str, Any] = {}
    for name in FIELDS:
        column = np.array(getattr(output, name), dtype=np.float32)
        if not unknown.get(name, False):
            column[list(wrong)] = zeros[list(wrong)]
        spared[name] = column
    return replace(check_output(candidates, replace(output, **spared)), wrong=wrong)
