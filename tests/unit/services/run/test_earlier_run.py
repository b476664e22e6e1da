"""A run directory of the release before, with checkpoints of format 2: everything in it still opens, and
training goes on from it (`tests/data/README.md` says how it was made).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.policy.policy import load_policy
from sluice.learner.ranker.load import load_ranker
from sluice.learner.training.checkpoint import read_rank, read_state, write_rank
from sluice.learner.training.objective import build_objective
from sluice.learner.training.recovery import choose_checkpoint
from sluice.learner.training.step import LearnerStep
from sluice.learner.training.train_loop import starting_policy
from sluice.services.config import load_config
from sluice.services.paths import RunPaths
from sluice.services.report.report import write_report
from sluice.services.run import arms, inputs, leftovers
from sluice.services.run.metrics_file import last_metrics, read_metrics
from sluice.services.stages.fit_ranker import run_ranker_fit
from sluice.services.stages.pretrain import run_pretraining

RUN = Path(__file__).parents[3] / "data" / "run-of-0.1"
CHECKPOINT = RUN / "checkpoints" / "train-best"


@pytest.fixture
def config():
    return load_config(RUN / "config.yaml")


def test_the_recorded_config_loads(config):
    assert (config.name, config.seed, config.policy.hidden_size) == ("tiny", 0, 32)
    assert (config.objective.type, config.objective.gate.tau) == ("adagrpo", 0.5)
    assert (config.learner.steps, config.learner.lr, config.learner.reference.every) == (8, 1e-3, 2)
    assert (config.rollout.engine.type, config.rollout.decode.candidates) == ("tree", 6)


def test_the_stages_take_up_what_they_left(config, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("built again")

    monkeypatch.setattr("sluice.learner.ranker.fit.fit_ranker", fail)
    monkeypatch.setattr("sluice.services.stages.pretrain.pretrain_policy", fail)
    copied = config.model_copy(update={"output": str(tmp_path)})
    shutil.copytree(RUN, copied.directory)
    assert run_ranker_fit(copied, lambda *_: None) == RunPaths.of(copied).ranker
    assert run_pretraining(copied, lambda *_: None) == RunPaths.of(copied).policy


def test_it_may_go_on_with_what_is_there(config, tmp_path):
    copied = config.model_copy(update={"output": str(tmp_path)})
    shutil.copytree(RUN, copied.directory)
    paths = RunPaths.of(copied)
    inputs.check_unchanged(copied, paths)
    arm = paths.arm("train")
    choice = choose_checkpoint(arm.kept, arm.best_checkpoint)
    assert (choice.directory, choice.damaged) == (arm.best_checkpoint, ())
    assert leftovers.check_checkpoints(paths, "auto") == "last"
    assert arms.ended_figures(copied, paths) is None  # it never said so


def test_its_data_and_policies_open():
    dataset = Dataset.open(RUN / "data")
    assert (dataset.items, len(dataset.examples("pretrain").users)) == (20, 144)
    policies = {name: load_policy(RUN / name) for name in ("policy", "best", "last")}
    for policy in policies.values():
        assert policy.layout.level_sizes == tuple(dataset.level_sizes)
    weights = {name: policy.model.model.embed_tokens.weight for name, policy in policies.items()}
    assert not torch.equal(weights["policy"], weights["last"])
    kept = load_policy(CHECKPOINT / "policy").model.model.embed_tokens.weight
    assert torch.equal(weights["best"], kept)


def test_its_ranker_judges_as_it_did(config):
    dataset = Dataset.open(RUN / "data")
    ranker = load_ranker(config.ranker, RUN / "ranker", dataset)
    assert ranker.version == json.loads((RUN / "ranker" / "ranker.json").read_text())["version"]
    examples = dataset.examples("test")
    pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
    everything = np.arange(dataset.items, dtype=np.int32)
    histories = [dataset.history(*pair, None) for pair in pairs]
    scores = ranker.score(histories, np.repeat(everything[None], len(pairs), axis=0)).copy()
    for row, pair in enumerate(pairs):
        scores[row, dataset.seen(*pair)] = -np.inf
    targets = [dataset.target(*pair) for pair in pairs]
    hits = np.mean([scores[row, target] == scores[row].max() for row, target in enumerate(targets)])
    assert hits == pytest.approx(json.loads((RUN / "summary.json").read_text())["metrics"]["ranker"]["hr@1"])


def test_its_metrics_and_summary_make_a_report(tmp_path):
    steps = read_metrics(RUN / "metrics.jsonl", "step")
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert last_metrics(RUN / "metrics-control.jsonl", "eval")["step"] == 8
    shutil.copytree(RUN, tmp_path / "tiny-seed0")
    page = write_report(tmp_path / "tiny-seed0").read_text()
    best = json.loads((RUN / "summary.json").read_text())["metrics"]["best"]
    assert f"{best['ndcg@10']:.4f}" in page
    assert "control (NLL alone), best" in page


def group_batch(seed):
    """Two prompts with three candidates each, items of the run's own catalogue."""
    dataset, draw = Dataset.open(RUN / "data"), np.random.default_rng(seed)
    tokens = Vocabulary.of(dataset.codes, load_policy(RUN / "policy").layout).item_tokens
    items = torch.from_numpy(draw.permuted(np.tile(np.arange(20), (2, 1)), axis=1)[:, :6])
    tokens_of = torch.from_numpy(np.asarray(tokens, dtype=np.int64))[items]
    return GroupBatch(
        history_BT=torch.cat([torch.ones(2, 1, dtype=torch.int64), tokens_of[:, 4:].flatten(1)], dim=1),
        history_lengths_B=torch.tensor([7, 7]),
        target_BL=tokens_of[:, 0],
        candidates_BKL=tokens_of[:, 1:4],
        behaviour_log_probs_BKL=torch.full((2, 3, 3), -1.2),
        candidate_items_BK=items[:, 1:4],
        target_items_B=items[:, 0],
        candidate_scores_BK=torch.from_numpy(draw.normal(size=(2, 3)).astype(np.float32)),
        target_scores_B=torch.tensor([3.0, 3.0]),
        distractor_scores_BJ=torch.full((2, 2), -3.0),
        allowed_BSLV=None,
        decoding=Decoding(candidates=3),
    )


def resumed(config, state):
    """A learner that goes on from the checkpoint, as a worker of the training loop makes it."""
    policy = starting_policy(RUN / "policy", config.learner, config.seed)
    learner = LearnerStep(policy.model, objective=build_objective(config.objective), settings=config.learner)
    policy.model.load_state_dict(load_policy(CHECKPOINT / "policy").model.state_dict())
    learner.load_state_dict(state)
    return learner


def test_its_checkpoint_holds_the_run():
    state = read_state(CHECKPOINT)
    assert (state.step, state.version, state.metrics_bytes) == (8, 4, 7364)
    assert state.best == (0.9166666666666666, 0.5452893774281788)
    assert state.source["counters"]["trained"] == 48
    assert len(state.source["outstanding"]) == 36
    whole = (RUN / "metrics.jsonl").read_bytes()[: state.metrics_bytes]
    assert json.loads(whole.splitlines()[-1])["step"] == 8


def test_its_learner_is_restored_exactly(config):
    # Numbers read from the file itself: nothing here is computed by the code that is tested.
    state = torch.load(CHECKPOINT / "rank-0.pt", map_location="cpu", weights_only=True)
    learner = resumed(config, read_rank(CHECKPOINT, 0))
    assert learner.step == 8
    assert learner.optimizer.param_groups[0]["lr"] == 1e-3
    moments = list(learner.optimizer.state.values())
    assert len(moments) == len(state["optimizer"]["state"]) == 13
    for index, values in enumerate(moments):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(values[name], state["optimizer"]["state"][index][name])
    assert moments[0]["step"] == 8 and moments[0]["exp_avg"].abs().sum() > 0
    assert learner.reference.version == 8
    for name, parameter in learner.model.named_parameters():  # synced after step 8
        assert torch.equal(learner.reference.values[name], parameter)
    assert torch.equal(torch.get_rng_state(), state["rng"]["torch"])


def test_training_goes_on_from_it_and_from_a_checkpoint_of_today(config, tmp_path):
    batches = [group_batch(seed) for seed in range(2)]
    first = resumed(config, read_rank(CHECKPOINT, 0))
    write_rank(tmp_path, 0, first.state_dict())
    trained = [first.update(batch) for batch in batches]
    assert first.step == 10 and first.reference.version == 10
    assert all(values["grad_norm"] > 0 for values in trained)
    again = resumed(config, read_rank(tmp_path, 0))
    for batch, values in zip(batches, trained, strict=True):
        repeated = again.update(batch)
        assert [repeated[name] for name in ("loss", "kl", "grad_norm")] == [
            values[name] for name in ("loss", "kl", "grad_norm")
        ]
    weights = dict(first.model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in again.model.named_parameters())
