"""When Ray Train's learner fails: what its controller tries again, and what its end is called.

worker raised      FailureGuard   hopeless: the run ends now. Else Ray Train starts it from its checkpoint
no place for one   PlaceGuard     after `HOPELESS_S` the run ends
controller died    `fit_learner`  started again, from the last checkpoint too
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback

from sluice.catalog.errors import RunError, SluiceError
from sluice.cluster import placement
from sluice.cluster.failure import decide_restart, describe, explain_storage, is_hopeless
from sluice.cluster.nodes import HOPELESS_S, MisfitWatch
from sluice.learner.training.checkpoint import read_state

_SETTING = "cluster.max_learner_restarts"
# The loggers that print every error of a worker, and of the controller, with its traceback.
_RAY_TRAIN_ERRORS = "ray.train.v2._internal.util"
_CONTROLLER_ERRORS = "ray.train.v2._internal.execution.controller.controller"


class FailureGuard(ray.train.UserCallback):
    """Ends the training at once where another try would end as the last one did.

    Ray Train itself tries every error of a worker as often as any other. An error of its controller it does
    not try again.
    """

    def __init__(self) -> None:
        self._former: BaseException | None = None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller; raises ControllerError with the error that is hopeless."""
        del run_context
        for _rank, error in sorted(worker_exceptions.items()):
            if is_hopeless(error, self._former):
                raise ControllerError(error)
        self._former = worker_exceptions[min(worker_exceptions)]


class PlaceGuard(ControllerCallback):
    """Ends the training when no node has room for a worker: Ray Train would wait for one for ever."""

    def __init__(self, places: Sequence[Mapping[str, float]], patience_s: float = HOPELESS_S) -> None:
        """`places` are the resources of each worker."""
        self._places, self._patience_s = tuple(places), patience_s

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the controller when it starts."""
        del train_run_context
        hide_told_tracebacks()

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> None:
        """Called in the controller before each start of the workers; raises ControllerError."""
        del scaling_config
        try:
            MisfitWatch(f"{num_workers} x learner", self._places, patience_s=self._patience_s).wait()
        except SluiceError as error:
            raise ControllerError(error) from None


def fit_learner(
    make_trainer: Callable[[], Any],
    name: str,
    *,
    bound: int,
    tell: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Train, and start again with another controller when the one that watches the workers dies.

    Raises:
        SluiceError: what ended it, in one message.
    """
    restarts, groups = 0, placement.known_groups()
    while True:
        try:
            make_trainer().fit()
            return
        except TrainingFailedError as error:
            raise learner_error(name, error, bound) from error
        except RayActorError as error:
            decision = decide_restart(
                f"Ray Train's controller of {name}",
                restarts=restarts,
                bound=bound,
                setting=_SETTING,
                reason=describe(error),
            )
        placement.remove_groups(but=groups)
        if not decision.restart:
            raise RunError(decision.message)
        tell(decision.message)
        restarts = decision.restarts
        pause(decision.wait_s)


def learner_error(name: str, error: TrainingFailedError, bound: int) -> SluiceError:
    """What a failed training raises: a SluiceError of its own as it is, anything else as a RunError that
    names it in one line.
    """
    cause, was_tried = root_of(error), isinstance(error, WorkerGroupError)
    if isinstance(cause, SluiceError) and not (was_tried and bound):
        return cause
    tried = f" after {bound} restart(s), the most that {_SETTING} allows. Last failure" if was_tried else ""
    told = f"{name} failed{tried}: {describe(cause)}"
    return type(cause)(told) if isinstance(cause, SluiceError) else RunError(told)


def root_of(error: BaseException) -> BaseException:
    """The error inside Ray Train's wrapping; of several workers' the one that tells most."""
    if isinstance(error, ControllerError):
        return root_of(error.controller_failure)
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        causes = [root_of(cause) for _rank, cause in sorted(error.worker_failures.items())]
        return next((cause for cause in causes if isinstance(cause, SluiceError)), causes[0])
    inner = getattr(error, "health_check_failure", None) or getattr(error, "cause", None)
    return root_of(inner) if isinstance(inner, BaseException) else error


def usable_checkpoint(checkpoints: Path) -> str:
    """A sentence about what a training that ended early can go on from. `checkpoints` is Ray Train's
    directory of the run.
    """
    steps = {}
    for directory in checkpoints.glob("checkpoint_*"):
        try:
            steps[read_state(directory).step] = directory
        except (RunError, OSError):
            continue  # half written, or it cannot be read now
    if not steps:
        return "There is no checkpoint to go on from"
    newest = max(steps)
    return f"The checkpoint of step {newest} is whole ({steps[newest]}): go on from it with --resume"


def hide_told_tracebacks() -> None:
    """In a worker or the controller: let Ray Train print no traceback of an error whose message says it
    all.
    """
    for name in (_RAY_TRAIN_ERRORS, _CONTROLLER_ERRORS):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(_record: logging.LogRecord) -> bool:
    error = sys.exc_info()[1]
    return not (isinstance(error, SluiceError) or (error is not None and explain_storage(error) is not None))
