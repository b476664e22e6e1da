"""What a failed training is tried again for, and what its end is called. No Ray is started."""

import errno
import json
import logging

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from sluice.catalog.errors import HopelessError, PolicyError, RunError
from sluice.cluster import placement
from sluice.services.run import learner_failures
from sluice.services.run.learner_failures import (
    FailureGuard,
    fit_learner,
    hide_told_tracebacks,
    learner_error,
    root_of,
    usable_checkpoint,
)

FULL = OSError(errno.ENOSPC, "No space left on device", "/runs/a/metrics.jsonl")


@pytest.fixture(autouse=True)
def removed(monkeypatch):
    """The places that a dead controller leaves; there is no cluster here."""
    names = []
    monkeypatch.setattr(placement, "known_groups", lambda: frozenset({"fleet"}))
    monkeypatch.setattr(placement, "remove_groups", lambda but: names.append(sorted(but)))
    return names


def test_a_hopeless_error_of_any_worker_ends_the_training_at_once():
    guard, full = FailureGuard(), OSError(errno.ENOSPC, "x")
    with pytest.raises(ControllerError) as ended:
        guard.after_exception(None, {0: RuntimeError("connection closed by peer"), 1: full})
    assert ended.value.controller_failure is full


def test_other_errors_are_left_to_ray_train_until_they_come_back():
    guard = FailureGuard()
    guard.after_exception(None, {0: RuntimeError("odd")})
    guard.after_exception(None, {0: ActorDiedError()})
    guard.after_exception(None, {0: RuntimeError("odd")})
    with pytest.raises(ControllerError, match="odd"):
        guard.after_exception(None, {0: RuntimeError("odd")})


class Trainer:
    """Its `fit` raises what is left, one after the other."""

    def __init__(self, *errors):
        self.errors, self.made = list(errors), 0

    def __call__(self):
        self.made += 1
        return self

    def fit(self):
        if self.errors:
            raise self.errors.pop(0)


def fit(trainer, bound=2):
    told, pauses = [], []
    fit_learner(trainer, "train", bound=bound, tell=told.append, pause=pauses.append)
    return told, pauses


def test_a_controller_that_died_is_started_again_until_the_bound(removed):
    trainer = Trainer(ActorDiedError(), ActorDiedError())
    told, pauses = fit(trainer)
    assert removed == [["fleet"], ["fleet"]]
    assert trainer.made == 3 and pauses == [0.0, 1.0]
    assert "Ray Train's controller of train failed and is started again (2 of at most 2 times)" in told[1]
    with pytest.raises(RunError, match=r"controller of train failed after 1 restart.*max_learner_restarts"):
        fit(Trainer(ActorDiedError(), ActorDiedError()), bound=1)


def test_what_ended_a_training_is_raised_as_one_line():
    with pytest.raises(PolicyError, match=r"^no such module$"):
        fit(Trainer(ControllerError(PolicyError("no such module"))))
    with pytest.raises(
        RunError, match=r"^train failed: /runs/a/metrics.jsonl: No space left on device: the di"
    ):
        fit(Trainer(ControllerError(FULL)))


def test_an_error_that_was_tried_again_says_how_often():
    error = WorkerGroupError("long\ntext", {0: RuntimeError("closed"), 1: RunError("queue gave no answer")})
    told = learner_error("train", error, bound=2)
    assert type(told) is RunError
    assert str(told) == (
        "train failed after 2 restart(s), the most that cluster.max_learner_restarts allows. Last failure: "
        "queue gave no answer"
    )
    assert str(learner_error("train", error, bound=0)) == "queue gave no answer"


def test_the_cause_is_found_inside_every_wrapping():
    class HealthCheckFailed(Exception):
        health_check_failure = ActorDiedError()

    inner = HopelessError("x")
    assert root_of(ControllerError(ControllerError(inner))) is inner
    group = WorkerGroupError("", {0: RuntimeError("collateral"), 1: inner})
    assert root_of(group) is inner
    assert isinstance(root_of(WorkerGroupError("", {0: HealthCheckFailed()})), ActorDiedError)
    empty = WorkerGroupError("", {})
    assert root_of(empty) is empty


def test_the_checkpoint_to_go_on_from_is_the_last_whole_one(tmp_path):
    assert usable_checkpoint(tmp_path / "gone") == "There is no checkpoint to go on from"
    state = {"format": 3, "version": 1, "best": [0, 0], "source": {}, "metrics_bytes": 0}
    for name, step in (("checkpoint_b", 40), ("checkpoint_a", 80), ("checkpoint_c", 120)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps(state | {"step": step}))
    (tmp_path / "checkpoint_c" / "state.json").write_text('{"format": 3, "st')
    assert usable_checkpoint(tmp_path) == (
        f"The checkpoint of step 80 is whole ({tmp_path}/checkpoint_a): go on from it with --resume"
    )


@pytest.mark.parametrize("name", [learner_failures._RAY_TRAIN_ERRORS, learner_failures._CONTROLLER_ERRORS])
@pytest.mark.parametrize(
    ("error", "shown"), [(RunError("said"), False), (FULL, False), (RuntimeError("news"), True)]
)
def test_a_traceback_is_printed_where_the_message_does_not_say_it_all(error, shown, name, caplog):
    logger = logging.getLogger(name)
    hide_told_tracebacks()
    try:
        with caplog.at_level(logging.ERROR, logger.name):
            try:
                raise error
            except Exception:
                logger.error("Error in training function")
    finally:
        logger.removeFilter(learner_failures._is_news)
    assert bool(caplog.records) is shown
