"""One training of the learner as a Ray Train job: the post-training itself, the control from the logs alone,
or another arm that the post-training is compared with.
"""

import math
import shutil
import threading
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from sluice.catalog.errors import SluiceError
from sluice.cluster.environment import lower_thread_priority
from sluice.cluster.metrics import MetricSet
from sluice.cluster.placement import learner_resources
from sluice.learner.objectives.settings.objective import Objective
from sluice.learner.training.kept import forget_lost
from sluice.learner.training.loop_config import LoopConfig
from sluice.learner.training.train_loop import train_loop
from sluice.services.config import RunConfig
from sluice.services.paths import ArmPaths, RunPaths
from sluice.services.progress import Progress, Reporter
from sluice.services.run.fleet import Fleet, fixed_order
from sluice.services.run.learner_failures import (
    FailureGuard,
    PlaceGuard,
    fit_learner,
    hide_told_tracebacks,
    usable_checkpoint,
)
from sluice.services.run.metrics_file import last_metrics

_POLL_S = 1.0
_START_S = 60.0  # how long Ray Train waits for its workers' places before it counts a failure


def run_learner(
    config: RunConfig,
    paths: RunPaths,
    name: str,
    objective: Objective,
    reporter: Reporter,
    fleet: Fleet | None = None,
) -> None:
    """One Ray Train run of the learner, shown as the phase `name`. All but "train" begin anew.

    Raises:
        SluiceError: the training ended early; the message says what it can go on from.
    """
    arm, order = paths.arm(name), fixed_order(config)
    loop = LoopConfig(
        metrics_path=str(arm.metrics),
        journal_path=str(arm.journal),
        data_directory=str(paths.data),
        policy_directory=str(paths.policy),
        best_directory=str(arm.best),
        best_checkpoint=str(arm.best_checkpoint),
        checkpoints=str(arm.kept),
        last_directory=str(arm.last),
        seed=config.seed,
        objective=objective,
        learner=config.learner,
        evaluation=config.evaluation,
        publish_every=config.weights.publish_every,
        threads=max(1, int(config.cluster.learner_cpus)),
        decoding=config.decoding,
        queue=fleet.queue if fleet else None,
        publisher=fleet.publisher if fleet else None,
        open_vocabulary=fleet.open_vocabulary if fleet else None,
        catalogues=fleet.catalogue_source if fleet and not config.deterministic else None,
        kept_versions=order.versions if fleet and order else 0,
        meter=MetricSet(),
    )
    _clear(arm, begins=name != "train")

    def make_trainer() -> TorchTrainer:
        forget_lost(arm.kept)
        return _trainer(config, name, loop, arm.checkpoints)

    with reporter.phase(name) as progress, _watching(arm.metrics, config.learner.steps, progress):
        try:
            fit_learner(make_trainer, name, bound=config.cluster.max_learner_restarts, tell=reporter.line)
        except SluiceError as error:
            raise _ending(error, fleet, arm.kept if name == "train" else None) from error


def _ending(error: SluiceError, fleet: Fleet | None, checkpoints: Path | None) -> SluiceError:
    """What ended a training, the state of the rollout side, and what there is to go on from, in one
    message.
    """
    ended, sentences = error, []
    if fleet is not None and fleet.failure is not None:
        ended = fleet.failure  # the learner has only been told of it
    elif fleet is not None:
        sentences.append(fleet.supervisor.describe())
    if checkpoints is not None:
        sentences.append(usable_checkpoint(checkpoints))
    return type(ended)(" ".join([f"{str(ended).rstrip('.')}.", *filter(None, sentences)]))


def _trainer(config: RunConfig, name: str, loop: LoopConfig, storage: Path) -> TorchTrainer:
    cluster, resources = config.cluster, learner_resources(config.cluster)
    guards: list[Any] = [FailureGuard(), PlaceGuard([resources] * config.learner.workers)]
    return TorchTrainer(
        _train_loop,
        train_loop_config={"config": loop},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.learner.workers,
            use_gpu=cluster.learner_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.learner.keep_last),
            # Checkers see the classes of Ray Train's first version; at run time they are the second's.
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=cluster.max_learner_restarts,
                controller_failure_limit=math.ceil(cluster.placement_timeout_s / _START_S),
            ),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=guards,
        ),
    )


def _clear(arm: ArmPaths, *, begins: bool) -> None:
    """What would keep a training from beginning anew."""
    if begins:
        for former in (arm.kept, arm.best_checkpoint):
            shutil.rmtree(former, ignore_errors=True)


def _train_loop(options: dict[str, Any]) -> None:
    """`train_loop` in a worker of Ray Train, which runs it in a thread beside Ray's own."""
    lower_thread_priority(but=threading.get_native_id())
    hide_told_tracebacks()
    train_loop(options)


class _watching:
    """Shows the progress of a training from its metrics file while `TorchTrainer.fit` blocks the driver."""

    def __init__(self, metrics: Path, steps: int, progress: Progress) -> None:
        self._metrics, self._total, self._progress = metrics, steps, progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            step = last_metrics(self._metrics, "step")
            if step is not None:
                shown = {"nll": step["nll"]}
                if "gate_rate" in step:
                    shown |= {"gate": step["gate_rate"], "stale": step["staleness"]}
                self._progress(step["step"], self._total, shown)
