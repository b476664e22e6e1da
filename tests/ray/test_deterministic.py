"""Deterministic runs: what was killed, when and who served the rollouts leaves the weights as they are."""

import hashlib
import io
import random
import threading

import pytest

from sluice.services.config import RunConfig
from sluice.services.operate.doctor import examine
from sluice.services.operate.faults import find_processes
from sluice.services.paths import RunPaths
from sluice.services.progress import Reporter
from sluice.services.run.learner_job import run_learner
from sluice.services.run.manifest import write_manifest
from sluice.services.run.metrics_file import read_metrics
from sluice.services.run.train import _train_with_rollouts
from sluice.services.stages.fit_ranker import run_ranker_fit
from sluice.services.stages.prepare import prepare_data
from sluice.services.stages.pretrain import run_pretraining
from tests.tiny_data import tiny_dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

STEPS = 36
# Their processes, as Ray names them, and how many of the ten kills each gets.
KILLS = {"RolloutActor": 4, "RankerActor": 2, "RayTrainWorker": 3, "QueueActor": 1}


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory):
    """Trains a tiny run into a directory of its own; all runs have the same data, start and ranker."""
    directory = tmp_path_factory.mktemp("deterministic")
    settings = tiny_dataset(directory).settings
    own = iter(range(100))

    def config(**changes) -> RunConfig:
        values = {
            "name": "tiny",
            "output": str(directory / str(next(own))),
            "data": settings.model_dump(mode="json"),
            "policy": {"hidden_size": 32, "layers": 1, "heads": 2, "feed_forward_size": 32},
            "pretrain": {"epochs": 1, "batch_interactions": 48},
            "ranker": {"ensemble": 1, "epochs": 1, "hidden_size": 8, "batch_interactions": 64},
            "rollout": {
                "engine": {"type": "tree"},
                "decode": {"candidates": 4},
                "prompts_per_lease": 3,
                "distractors": 2,
                "cpus": 0.1,
            },
            "ranker_pool": {"cpus": 0.1},
            "queue": {"max_groups": 24, "max_staleness": 1},
            "weights": {"publish_every": 2},
            "objective": {"type": "adagrpo", "gate": {"parts": "trust", "trust": {"at_least": 1}}},
            "learner": {
                "steps": STEPS,
                "prompts_per_step": 6,
                "evaluate_every": 5,
                "warmup_steps": 1,
                "lr": 1e-2,
                "dropout": 0.1,
            },
            "evaluation": {"beam_width": 10, "max_users": 6},
            "cluster": {"learner_cpus": 0.5, "max_actor_restarts": 20, "max_learner_restarts": 20},
            "deterministic": True,
        }
        for name, value in changes.items():
            values[name] = {**values[name], **value} if isinstance(value, dict) else value
        return RunConfig.model_validate(values)

    def train(settings: RunConfig) -> dict[str, int]:
        paths = RunPaths.of(settings)
        write_manifest(settings, paths.root)
        with Reporter.for_stream(io.StringIO()) as reporter:
            prepare_data(settings.data, paths.data)
            run_pretraining(settings, lambda *_: None)
            run_ranker_fit(settings, lambda *_: None)
            return _train_with_rollouts(
                settings,
                paths,
                reporter,
                lambda fleet: run_learner(settings, paths, "train", settings.objective, reporter, fleet),
            )["accounting"]

    train.config = config
    return train


def weights_of(config: RunConfig) -> str:
    return hashlib.sha256((RunPaths.of(config).last / "model.safetensors").read_bytes()).hexdigest()


def losses_of(config: RunConfig) -> dict[int, tuple[float, float]]:
    rows = read_metrics(RunPaths.of(config).arm("train").metrics, "step")
    return {row["step"]: (row["loss"], row["gate_rate"]) for row in rows}


@pytest.fixture(scope="module")
def undisturbed(run):
    config = run.config()
    accounting = run(config)
    assert (accounting["trained"], accounting["stale"], accounting["invalid"]) == (STEPS * 6, 0, 0)
    return config


class Killer(threading.Thread):
    """Kills processes of this test's cluster, each when the run has come to a step."""

    def __init__(self, config: RunConfig, kills: list[tuple[int, str]]) -> None:
        super().__init__(daemon=True)
        self._metrics, self._kills = RunPaths.of(config).arm("train").metrics, sorted(kills)
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        for step, kind in self._kills:
            while not (self._step() >= step and self._kill(kind)):
                if self.over.wait(0.02):
                    return

    def _step(self) -> int:
        return max((row["step"] for row in read_metrics(self._metrics, "step")), default=-1)

    def _kill(self, kind: str) -> bool:
        processes = find_processes(kind)
        if processes:
            processes[0].kill()
            self.killed.append(kind)
        return bool(processes)


def run_with_kills(run, config: RunConfig) -> None:
    """Ten kills at random moments; no prompt is lost or trained on twice."""
    draw = random.Random(7)
    kinds = [kind for kind, times in KILLS.items() for _ in range(times)]
    killer = Killer(config, [(draw.randrange(1, STEPS - 2), kind) for kind in kinds])
    killer.start()
    accounting = run(config)
    killer.over.set()
    assert sorted(killer.killed) == sorted(kinds)
    assert accounting["trained"] == STEPS * 6
    assert accounting["invalid"] == 0
    diagnosis = examine(RunPaths.of(config).root)
    assert diagnosis.problems == diagnosis.notes == []
    assert diagnosis.counts["trained"] == STEPS * 6


def test_ten_kills_at_random_moments_leave_the_weights_as_they_are(run, undisturbed):
    config = run.config()
    run_with_kills(run, config)
    assert losses_of(config) == losses_of(undisturbed)
    assert weights_of(config) == weights_of(undisturbed)


def test_a_run_that_ended_early_goes_on_with_other_actors_to_the_same_weights(run, undisturbed):
    config = run.config()
    part = config.model_copy(update={"learner": config.learner.model_copy(update={"steps": 17})})
    run(part)
    more = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"actors": 3}),
            "ranker_pool": config.ranker_pool.model_copy(update={"actors": 2}),
        }
    )
    run(more)
    assert losses_of(more) == losses_of(undisturbed)
    assert weights_of(more) == weights_of(undisturbed)
