"""The process in which a user's ranker is tried: `python -m sluice.services.preflight.ranker_process DIR`.

DIR holds `question.json`. What happens is written to `answer.jsonl` line by line, so that whoever started the
process can tell where it hangs and end it: a `stage` when one begins, at last the `breaches` and whether
trust would be `in_sample`, or an `error`.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.errors import DataError, RankerError
from sluice.learner.ranker.load import can_leave_users_out, load_ranker
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.ranker.trial import compare_replicas, try_ranker
from sluice.learner.trust.halves import open_halves
from sluice.services.preflight.sample import draw_questions, sample_dataset

QUESTION, ANSWER = "question.json", "answer.jsonl"
_CALLS = ("score", "predict", "assess")
_QUICK_S = 5.0  # a ranker that takes longer to load is loaded once


class _Diary:
    """Appends lines to a file, each of them at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **line: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class _Watched:
    """A ranker that says when it is called."""

    def __init__(self, ranker: Any, diary: _Diary) -> None:
        self._ranker, self._diary = ranker, diary

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ranker, name)
        if name in _CALLS:
            self._diary.write(stage="call")
        return value


def answer_question(directory: Path) -> None:
    """Load the ranker that `question.json` names and try it; everything is told in `answer.jsonl`."""
    question = json.loads((directory / QUESTION).read_text())
    diary = _Diary(directory / ANSWER)
    settings = RankerSettings.model_validate(question["ranker"])
    diary.write(stage="data")
    try:
        if question["prepared"] is not None:
            dataset = Dataset.open(question["prepared"])
        else:
            dataset = sample_dataset(DataSettings.model_validate(question["data"]), directory)
        questions = draw_questions(dataset)
    except DataError as error:
        diary.write(error=str(error))
        return
    try:
        ranker, seconds = _load(settings, dataset, diary)
        breaches = try_ranker(ranker, questions)
        if not breaches and seconds < _QUICK_S:
            breaches = compare_replicas(ranker, _load(settings, dataset, diary)[0], questions)
        without_users = question["trust"] and can_leave_users_out(settings)
        if without_users:
            diary.write(stage="load")
            open_halves(ranker, settings, "", dataset)
    except RankerError as error:
        diary.write(error=str(error))
        return
    in_sample = question["trust"] and not without_users
    diary.write(breaches=[asdict(breach) for breach in breaches], in_sample=in_sample)


def _load(settings: RankerSettings, dataset: Dataset, diary: _Diary) -> tuple[Any, float]:
    """The ranker, and the seconds that it took."""
    diary.write(stage="load")
    started_s = time.monotonic()
    return _Watched(load_ranker(settings, "", dataset), diary), time.monotonic() - started_s


def end_with_starter() -> None:
    """From now on this process group ends when standard input does: whoever started it is gone then.

    What the ranker reads from standard input is nothing.
    """
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def wait_and_end() -> None:
        os.read(pipe, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, name="end-with-starter", daemon=True).start()


if __name__ == "__main__":
    end_with_starter()
    answer_question(Path(sys.argv[1]))
