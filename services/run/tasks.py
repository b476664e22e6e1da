"""Heavy single-process work (training the start and the ranker, judging policies) as Ray tasks beside each
other.

Each task gets the resources of one learner worker, so it lands where the learner would, and as many run at
once as the cluster has room for. Progress comes back through one small actor that the driver reads.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from sluice.actors.calls import get_result
from sluice.catalog.errors import RunError
from sluice.cluster.failure import describe
from sluice.cluster.nodes import MisfitWatch
from sluice.cluster.placement import as_options, learner_resources
from sluice.cluster.settings import ClusterSettings
from sluice.services.progress import Progress

_POLL_S = 0.5
_SEND_EVERY_S = 0.5
_RESULT_S = 60.0  # for a result that is there to arrive from its node

State = tuple[int, int, dict[str, float]]  # done, total, fields


class _Board:
    """The latest progress of every task."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    def put(self, name: str, state: State) -> None:
        self._states[name] = state

    def read(self) -> dict[str, State]:
        return self._states


def run_tasks(
    jobs: Mapping[str, Callable[[Progress], Any]],
    settings: ClusterSettings,
    watch: Callable[[str, State, bool], None],
) -> dict[str, Any]:
    """Run all jobs; returns their results by name.

    Args:
        jobs: picklable callables that report to the progress callback they are given.
        settings: the resources of one task.
        watch: told of every task's progress, and with True once when it has ended well.

    Raises:
        SluiceError: what a job raised, as it raised it; the others are cancelled.
        RunError: a job raised anything else, or a task died.
        ClusterError: no node has the resources of one task, whoever else runs there.
    """
    board: Any = ray.remote(_Board).options(num_cpus=0).remote()
    run = ray.remote(_run).options(**as_options(learner_resources(settings)), max_retries=1)
    misfit = MisfitWatch(" or ".join(jobs), [learner_resources(settings)])
    pending = {run.remote(name, job, board): name for name, job in jobs.items()}
    results = {}
    try:
        while pending:
            misfit.check()
            ended, _ = ray.wait(list(pending), timeout=_POLL_S)
            states = ray.get(board.read.remote())
            for name in pending.values():
                if name in states:
                    watch(name, states[name], False)
            for reference in ended:
                name = pending.pop(reference)
                results[name] = _result(name, reference)
                watch(name, states.get(name, (1, 1, {})), True)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.kill(board)
    return results


def _run(name: str, job: Callable[[Progress], Any], board: Any) -> Any:
    sent_s = 0.0

    def progress(done: int, total: int, fields: Mapping[str, float]) -> None:
        nonlocal sent_s
        if done >= total or time.monotonic() - sent_s > _SEND_EVERY_S:
            sent_s = time.monotonic()
            board.put.remote(name, (done, total, dict(fields)))

    return job(progress)


def _result(name: str, reference: Any) -> Any:
    try:
        return get_result(reference, name, _RESULT_S)
    except RayTaskError as error:
        raise RunError(f"{name} failed: {describe(error.cause)}") from error
    except RayError as error:
        raise RunError(f"{name} died with its worker process twice: {describe(error)}") from error
