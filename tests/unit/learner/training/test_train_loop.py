"""The loop in this process, without Ray: what it validates on, and which checkpoint is the best."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import ray.train
import ray.train.torch
import torch

from sluice.catalog.decoding import Decoding
from sluice.catalog.files import digest_files
from sluice.learner.objectives.settings.objective import NllObjective
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.learner.settings import EvaluationSettings, LearnerSettings, PolicySettings
from sluice.learner.training import train_loop
from sluice.learner.training.checkpoint import read_state
from tests.tiny_data import tiny_dataset
from tests.unit.learner.training.test_checkpoint import cut


@pytest.fixture
def config(tmp_path, monkeypatch):
    dataset = tiny_dataset(tmp_path)
    policy = PolicySettings(hidden_size=16, layers=1, heads=1, feed_forward_size=16)
    save_policy(build_policy(policy, dataset.level_sizes, max_positions=64, seed=0), tmp_path / "policy")
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "report", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    return train_loop.LoopConfig(
        metrics_path=str(tmp_path / "metrics.jsonl"),
        journal_path=str(tmp_path / "journal.jsonl"),
        data_directory=str(tmp_path / "data"),
        policy_directory=str(tmp_path / "policy"),
        best_directory=str(tmp_path / "best"),
        best_checkpoint=str(tmp_path / "checkpoints" / "best"),
        checkpoints=str(tmp_path / "checkpoints" / "kept"),
        last_directory=str(tmp_path / "last"),
        seed=0,
        objective=NllObjective(),
        learner=LearnerSettings(steps=3, prompts_per_step=6, evaluate_every=1, warmup_steps=0, lr=1e-2),
        evaluation=EvaluationSettings(beam_width=10),
        publish_every=1,
        threads=1,
        decoding=Decoding(candidates=2),
        queue=None,
        publisher=None,
    )


def best_step(config, monkeypatch, scores):
    """The step of the best checkpoint of a run whose validations give these (HR@10, NDCG@10)."""
    results = iter(
        [SimpleNamespace(summary=lambda *_, s=s: {"hr@10": s[0], "ndcg@10": s[1]}) for s in scores]
    )
    monkeypatch.setattr(train_loop, "validate_policy", lambda *_: next(results))
    train_loop.train_loop({"config": config})
    return read_state(Path(config.best_checkpoint)).step


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([(0.3, 0.1), (0.2, 0.2), (0.1, 0.3), (0.2, 0.1)], 0),  # the start itself
        ([(0.1, 0.1), (0.3, 0.1), (0.3, 0.1), (0.2, 0.9)], 1),  # the earlier of equals, not the last
        ([(0.1, 0.1), (0.3, 0.1), (0.3, 0.2), (0.2, 0.9)], 2),  # HR@10 first, then NDCG@10
    ],
)
def test_the_best_checkpoint_is_the_first_with_the_best_validation(config, monkeypatch, scores, step):
    assert best_step(config, monkeypatch, scores) == step


def test_weighted_validation_chooses_the_best_where_there_is_one(config, monkeypatch):
    def best_by(select_by):
        evaluation = EvaluationSettings(beam_width=10, select_by=select_by)
        scores = [(0.3, 0.1), (0.2, 0.2), (0.2, 0.3), (0.1, 0.1)]
        results = iter(
            SimpleNamespace(
                summary=lambda _, settings, logged=logged, weighted=weighted: {
                    "hr@10": logged,
                    "ndcg@10": logged,
                    "effective_examples": 100.0,
                    "ips_hr@10": weighted if settings is evaluation else 0.0,
                    "ips_ndcg@10": weighted,
                }
            )
            for logged, weighted in scores
        )
        monkeypatch.setattr(train_loop, "validate_policy", lambda *_: next(results))
        train_loop.train_loop({"config": dataclasses.replace(config, evaluation=evaluation)})
        return read_state(Path(config.best_checkpoint)).step

    assert best_by("logged") == 0
    shutil.rmtree(config.best_checkpoint)
    assert best_by("auto") == 2


def keep_reported(config, monkeypatch):
    """As Ray Train does with `keep_last: 1`."""
    kept = Path(config.checkpoints) / "checkpoint_1"

    def report(_summary, *, checkpoint):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(checkpoint.path, kept)

    monkeypatch.setattr(ray.train, "report", report)
    return kept


def test_a_run_out_of_patience_is_not_trained_on_when_it_is_resumed(config, monkeypatch):
    impatient = dataclasses.replace(config, learner=config.learner.model_copy(update={"patience": 1}))
    keep_reported(config, monkeypatch)
    best_step(impatient, monkeypatch, [(0.3, 0.1), (0.2, 0.1)])
    assert best_step(impatient, monkeypatch, []) == 0
    rows = [json.loads(line) for line in Path(config.metrics_path).read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1]
    assert [row["step"] for row in rows if row["kind"] == "time"] == [1]


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_best_one(config, monkeypatch):
    kept = keep_reported(config, monkeypatch)
    best_step(config, monkeypatch, [(0.1, 0.1), (0.3, 0.1), (0.2, 0.1), (0.2, 0.1)])
    assert read_state(kept).step == 3
    cut(kept / "policy" / "model.safetensors")
    assert best_step(config, monkeypatch, [(0.2, 0.2), (0.2, 0.1)]) == 1
    rows = [json.loads(line) for line in Path(config.metrics_path).read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3]


def test_a_best_checkpoint_that_is_later_than_the_last_one_is_not_lost(config, monkeypatch):
    """A process died after it had kept the best one, and before Ray Train had the checkpoint of that step."""
    kept = keep_reported(config, monkeypatch)
    shorter = dataclasses.replace(config, learner=config.learner.model_copy(update={"steps": 1}))
    best_step(shorter, monkeypatch, [(0.1, 0.1), (0.2, 0.1)])
    early = shutil.copytree(kept, kept.parent / "early")
    best_step(config, monkeypatch, [(0.4, 0.1), (0.2, 0.1)])
    shutil.rmtree(kept)
    early.rename(kept)
    shutil.rmtree(config.best_directory)  # nor had the policy been copied
    assert best_step(config, monkeypatch, [(0.3, 0.1), (0.3, 0.1)]) == 2
    assert digest_files(Path(config.best_directory)) == digest_files(Path(config.best_checkpoint) / "policy")


def test_the_loop_validates_on_the_validation_part_alone(config, monkeypatch):
    validated = []
    validate = train_loop.validate_policy

    def spy(*arguments):
        results = validate(*arguments)
        validated.append(set(zip(results.users.tolist(), results.positions.tolist(), strict=True)))
        return results

    monkeypatch.setattr(train_loop, "validate_policy", spy)
    train_loop.train_loop({"config": config})
    examples = train_loop.Dataset.open(config.data_directory).examples("valid")
    valid = set(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    assert validated == [valid] * 4
    rows = [json.loads(line) for line in Path(config.metrics_path).read_text().splitlines()]
    (first, *_) = [row for row in rows if row["kind"] == "eval"]
    assert {"hr@1", "coverage", "head_share", "entropy", "duplicates", "examples", "users"} <= first.keys()
    assert "hr@50" not in first, "a list of ten places knows nothing of fifty"
