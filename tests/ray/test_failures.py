"""Ray Train under our guards: hopeless errors are not tried again, others are, a dead controller is
replaced, and a worker that no node can take is not waited for. Single tasks of a run that raise, die or have
no place: one message each.
"""

import functools
import os
import signal
import time
from pathlib import Path

import pytest
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from sluice.catalog.errors import ClusterError, DataError, HopelessError, RunError
from sluice.cluster import nodes
from sluice.cluster.settings import ClusterSettings
from sluice.services.operate.faults import find_processes
from sluice.services.run import tasks
from sluice.services.run.learner_failures import FailureGuard, PlaceGuard, fit_learner
from sluice.services.run.tasks import run_tasks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def trainer(storage, loop, cpus=0.5):
    resources = {"CPU": cpus}
    return TorchTrainer(
        loop,
        train_loop_config={"log": str(storage / "attempts")},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name="loop",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=[FailureGuard(), PlaceGuard([resources], patience_s=2.0)],
        ),
    )


def fit(storage, loop, **options):
    told = []
    make = functools.partial(trainer, storage, loop, **options)
    fit_learner(make, "train", bound=2, tell=told.append, pause=lambda _: None)
    return told


def attempts(storage):
    return len((storage / "attempts").read_text())


def begin(options):
    with Path(options["log"]).open("a") as file:
        file.write("x")


def hopeless(options):
    begin(options)
    raise HopelessError("the gradient norm is nan")


def odd(options):
    begin(options)
    raise RuntimeError(f"connection {Path(options['log']).stat().st_size} closed")


def waits(options):
    """Ends in the second attempt alone."""
    begin(options)
    while Path(options["log"]).stat().st_size < 2:
        time.sleep(0.1)


def test_a_hopeless_error_is_raised_as_it_is_and_not_tried_again(cluster, tmp_path):
    with pytest.raises(HopelessError, match=r"^the gradient norm is nan$"):
        fit(tmp_path, hopeless)
    assert attempts(tmp_path) == 1


def test_an_error_that_may_pass_is_tried_again_until_the_bound(cluster, tmp_path):
    with pytest.raises(RunError, match=r"train failed after 2 restart.* RuntimeError: connection 3 closed$"):
        fit(tmp_path, odd)
    assert attempts(tmp_path) == 3


def test_a_worker_that_no_node_can_take_is_not_waited_for(cluster, tmp_path):
    began_s = time.monotonic()
    with pytest.raises(
        ClusterError, match="no place for 1 x learner: CPU 64 is asked of one node, and the lar"
    ):
        fit(tmp_path, waits, cpus=64)
    assert time.monotonic() - began_s < 30


def test_a_controller_that_was_killed_is_replaced(cluster, tmp_path):
    import threading

    def kill():
        while not (tmp_path / "attempts").exists():
            time.sleep(0.1)
        (controller,) = find_processes("TrainController")
        os.kill(controller.pid, signal.SIGKILL)

    other = placement_group([{"CPU": 0.1}])  # as a fleet's reservation, which is there before
    threading.Thread(target=kill, daemon=True).start()
    (line,) = fit(tmp_path, waits)
    # The killed controller leaves its worker's place behind, which nobody else would get.
    assert [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"] == [
        other.id.hex()
    ]
    remove_placement_group(other)
    assert line.startswith(
        "Ray Train's controller of train failed and is started again (1 of at most 2 times)"
    )
    assert attempts(tmp_path) == 2


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
