"""The learner's loop under Ray Train, from the logs: sharded workers do what DDP workers do, resumed or
not.
"""

import dataclasses
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.objectives.settings.objective import NllObjective
from sluice.learner.policy.packed_weights import PackedWeights, UnverifiedWeights
from sluice.learner.policy.policy import build_policy, load_policy, save_policy
from sluice.learner.settings import EvaluationSettings, LearnerSettings, LoraSettings, PolicySettings
from sluice.learner.training.checkpoint import read_state
from sluice.learner.training.loop_config import LoopConfig
from sluice.learner.training.train_loop import train_loop
from tests.tiny_data import USERS, tiny_dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclasses.dataclass(frozen=True)
class FilePublisher:
    """Leaves every version in a directory."""

    directory: str

    def publish(self, weights: PackedWeights) -> None:
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        (Path(self.directory) / f"{weights.version}.pickle").write_bytes(pickle.dumps(weights))

    def latest_version(self) -> int:
        return max((int(path.stem) for path in Path(self.directory).glob("*.pickle")), default=0)


@pytest.fixture(scope="module")
def start(cluster, tmp_path_factory):
    """Prepared data, and a starting policy beside it."""
    directory = tmp_path_factory.mktemp("loop")
    dataset = tiny_dataset(directory)
    policy = PolicySettings(hidden_size=16, layers=2, heads=2, feed_forward_size=16)
    save_policy(build_policy(policy, dataset.level_sizes, max_positions=64, seed=0), directory / "policy")
    return directory


def fit(start, directory, steps, open_vocabulary=None, **learner):
    """Run, or resume, to `steps`; the rows of the metrics file."""
    learner = {"prompts_per_step": 6, "evaluate_every": 2, "warmup_steps": 1, "lr": 1e-2} | learner
    loop = LoopConfig(
        metrics_path=str(directory / "metrics.jsonl"),
        journal_path=str(directory / "journal.jsonl"),
        data_directory=str(start / "data"),
        policy_directory=str(start / "policy"),
        best_directory=str(directory / "best"),
        best_checkpoint=str(directory / "checkpoints" / "loop-best"),
        checkpoints=str(directory / "checkpoints" / "loop"),
        last_directory=str(directory / "last"),
        seed=0,
        objective=NllObjective(),
        learner=LearnerSettings(steps=steps, **learner),
        evaluation=EvaluationSettings(beam_width=10, batch_size=5),
        publish_every=2,
        threads=1,
        decoding=Decoding(candidates=2),
        queue=None,
        publisher=FilePublisher(str(directory / "published")),
        open_vocabulary=open_vocabulary,
    )
    scaling = ray.train.ScalingConfig(num_workers=loop.learner.workers, resources_per_worker={"CPU": 0.5})
    run = ray.train.RunConfig(name="loop", storage_path=str(directory / "checkpoints"))
    TorchTrainer(train_loop, train_loop_config={"config": loop}, scaling_config=scaling, run_config=run).fit()
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def figures(rows, kind, *names):
    return {(row["step"], name): row[name] for row in rows if row["kind"] == kind for name in names}


def assert_published_is_saved(directory, version):
    packed = pickle.loads((directory / "published" / f"{version}.pickle").read_bytes())
    with UnverifiedWeights(packed).verifying():
        pass
    saved = dict(load_policy(directory / "last").model.named_parameters())
    found = dict(packed.tensors())
    assert list(found) == list(saved)
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    return saved


def assert_best_is_whole(directory, workers):
    """One checkpoint at the best validation, with every worker's part and the policy that was validated."""
    best = directory / "checkpoints" / "loop-best"
    state = read_state(best)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: (row["hr@10"], row["ndcg@10"]) for row in rows if row["kind"] == "eval"}
    assert state.best == max(scores.values())
    assert state.step == min(step for step, score in scores.items() if score == state.best)
    assert sorted(path.name for path in best.glob("rank-*")) == [
        f"rank-{rank}.{kind}" for rank in range(workers) for kind in ("json", "safetensors")
    ]
    kept, policy = (
        dict(load_policy(place).model.named_parameters()) for place in (best / "policy", directory / "best")
    )
    assert all(torch.equal(kept[name], policy[name]) for name in policy)
    assert not list(directory.rglob("*.new")) + list(directory.rglob("*.old"))


def test_a_sharded_and_resumed_run_is_the_run_of_ddp_workers(start, tmp_path):
    expected = fit(start, tmp_path / "ddp", 4, workers=2)
    fit(start, tmp_path / "fsdp", 2, workers=2, sharding="fsdp")
    assert_best_is_whole(tmp_path / "fsdp", workers=2)
    found = fit(start, tmp_path / "fsdp", 4, workers=2, sharding="fsdp")
    for kind, names in {
        "step": ("loss", "grad_norm", "lr"),
        "eval": ("hr@10", "mrr", "hallucination"),
    }.items():
        wanted = figures(expected, kind, *names)
        assert figures(found, kind, *names) == pytest.approx(wanted, abs=1e-4)
        assert {step for step, _ in wanted} == ({1, 2, 3, 4} if kind == "step" else {0, 2, 4})
    assert figures(found, "eval", "users") == {(step, "users"): USERS for step in (0, 2, 4)}
    plain = assert_published_is_saved(tmp_path / "ddp", 2)
    sharded = assert_published_is_saved(tmp_path / "fsdp", 3)  # the resumed run published what it began with
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, atol=1e-4, rtol=0)


def test_the_best_checkpoint_is_kept_whole_and_a_run_goes_back_to_it(start, tmp_path):
    rows = fit(start, tmp_path, 8, lr=0.1, dropout=0.2)
    assert_best_is_whole(tmp_path, workers=1)
    best = read_state(tmp_path / "checkpoints" / "loop-best")
    assert best.step < 8
    shutil.rmtree(tmp_path / "checkpoints" / "loop")
    # Out of the object store, as in a run with rollouts, instead of made by the worker: the same catalogue.
    vocabulary = Vocabulary.of(Dataset.open(start / "data").codes, load_policy(start / "policy").layout)
    again = fit(start, tmp_path, 8, partial(ray.get, ray.put(vocabulary)), lr=0.1, dropout=0.2)
    assert [row["step"] for row in again if row["kind"] == "start"] == [0, best.step]
    for kind, names in {"step": ("loss", "grad_norm", "lr"), "eval": ("hr@10", "ndcg@10")}.items():
        assert figures(again, kind, *names) == pytest.approx(figures(rows, kind, *names), abs=1e-6)
    assert read_state(tmp_path / "checkpoints" / "loop-best") == best


def test_adapters_leave_and_publish_a_plain_policy(start, tmp_path):
    rows = fit(start, tmp_path, 2, lora=LoraSettings(rank=2, targets=("q_proj",)), precision="bfloat16")
    saved = assert_published_is_saved(tmp_path, 1)
    before = dict(load_policy(start / "policy").model.named_parameters())
    changed = {name for name in saved if not torch.equal(saved[name], before[name])}
    queries = {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert changed == queries | {"model.embed_tokens.weight"}
    assert figures(rows, "step", "loss")[2, "loss"] > 0
