"""Single tasks of a run that raise, die or find no place: one message each."""

import os

import pytest

from sluice.catalog.errors import ClusterError, DataError, RunError
from sluice.cluster import nodes
from sluice.cluster.settings import ClusterSettings
from sluice.services.run import tasks
from sluice.services.run.tasks import run_tasks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def run(job, **cluster):
    return run_tasks({"fit": job}, ClusterSettings(**cluster), lambda *_: None)


def raise_own(_progress):
    raise DataError("the log has no rows")


def raise_any(_progress):
    raise ZeroDivisionError("no scores today\nand more")


def raise_disk(_progress):
    raise OSError(28, "No space left on device", "/runs/a/policy")


def die(_progress):
    os._exit(1)


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (raise_own, DataError, "^the log has no rows$"),
        (raise_any, RunError, "^fit failed: ZeroDivisionError: no scores today$"),
        (
            raise_disk,
            RunError,
            "^fit failed: /runs/a/policy: No space left on device: the disk is full: make ro",
        ),
        (die, RunError, "^fit died with its worker process twice: [A-Za-z]+: [^\n]*$"),
    ],
)
def test_a_task_that_fails_is_told_in_one_line(cluster, job, error, message):
    with pytest.raises(error, match=message):
        run(job)


def test_a_task_that_no_node_can_take_is_not_waited_for(cluster, monkeypatch):
    def patient(what, places):
        return nodes.MisfitWatch(what, places, patience_s=1.0)

    monkeypatch.setattr(tasks, "MisfitWatch", patient)
    with pytest.raises(
        ClusterError, match="no place for fit: CPU 64 is asked of one node, and the largest has 4"
    ):
        run(raise_own, learner_cpus=64)
