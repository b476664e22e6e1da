"""A whole study, its jobs in this process."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RankerError, RunError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.evaluation.evaluate import evaluate_policy
from sluice.learner.policy.policy import load_policy
from sluice.services.study import run as study_run
from sluice.services.study.arm import train_arm
from sluice.services.study.results import ROW, cells_of, gather, paths_of, status_lines
from sluice.services.study.settings import arm_config, load_study, set_config
from tests.unit.services.study.conftest import no_progress, run_here, write_study

ARMS = ("nll", "mixture", "heavy", "gate", "random", "trust")


class Silent:
    """A reporter that shows nothing."""

    def phase(self, _name):
        class Phase:
            __enter__ = lambda _self: no_progress  # noqa: E731
            __exit__ = lambda *_: None  # noqa: E731

        return Phase()


def weights_of(directory):
    return load_file(directory / "model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_every_arm_of_every_seed_is_trained_and_judged(finished):
    assert finished.failed == []
    rows = pq.read_table(gather(finished.study)).to_pylist()
    assert {(row["arm"], row["seed"], row["checkpoint"]) for row in rows} == {
        (arm, seed, checkpoint)
        for arm in ("start", *ARMS)
        for seed in (0, 1)
        for checkpoint in ("last", "best")
    }
    of = {(row["arm"], row["seed"], row["checkpoint"]): row for row in rows}
    assert of["mixture", 0, "last"]["gate_rate"] == 1 and of["nll", 0, "last"]["gate_rate"] is None
    assert of["nll", 0, "last"]["groups"] == 0 and of["gate", 0, "last"]["groups"] == 24
    assert of["gate", 0, "last"]["tokens"] == 24 * 6 * 3  # groups, candidates, levels
    assert of["gate", 0, "last"]["prompts"] == of["nll", 0, "last"]["prompts"] == 24
    assert of["start", 0, "last"]["steps"] == 0
    assert all(row["judge_return"] > row["judge"] > 1 for row in rows)  # stars, of two steps and of one
    assert status_lines(finished.study)[0].endswith("14 of 14 done")


def test_a_row_is_what_evaluation_finds_of_the_policy(finished):
    config = set_config(finished.study, "tiny", 1)
    dataset = Dataset.open(paths_of(finished.study, "tiny", 1).data)
    cell = next(cell for cell in cells_of(finished.study) if (cell.arm, cell.seed) == ("heavy", 1))
    policy = load_policy(cell.directory / "last")
    judged = evaluate_policy(
        policy.model,
        Vocabulary.of(dataset.codes, policy.layout),
        dataset,
        dataset.examples("test"),
        config.evaluation,
    )
    row = next(row for row in cell.rows() if row["checkpoint"] == "last")
    assert row["hr@10"] == judged.summary(dataset)["hr@10"]
    assert cell.examples("last", "test").column("rank").to_pylist() == judged.ranks.tolist()


def test_arms_of_a_seed_share_the_start_and_differ_in_the_objective_alone(finished, tmp_path):
    study = finished.study
    root = paths_of(study, "tiny", 0).root
    last = {arm: weights_of(root / "arms" / arm / "last") for arm in ARMS}
    assert not any(equal(last[a], last[b]) for a in ARMS for b in ARMS if a < b)
    start = weights_of(root / "policy")
    assert not equal(start, last["nll"]) and not equal(start, weights_of(paths_of(study, "tiny", 1).policy))
    # A weight of almost nothing is NLL on the same prompts.
    config = arm_config(study, "tiny", "mixture", 0, None)
    light = config.model_copy(update={"objective": config.objective.model_copy(update={"weight": 1e-12})})
    train_arm(light, paths_of(study, "tiny", 0), tmp_path, no_progress)
    for name, value in weights_of(tmp_path / "last").items():
        np.testing.assert_allclose(value, last["nll"][name], atol=2e-6)


def test_an_arm_gives_equal_weights_again(finished, tmp_path):
    study = finished.study
    paths = paths_of(study, "tiny", 0)
    figures = train_arm(arm_config(study, "tiny", "gate", 0, None), paths, tmp_path, no_progress)
    first = json.loads((paths.root / "arms" / "gate" / ROW).read_text())["cost"]
    assert equal(weights_of(tmp_path / "last"), weights_of(paths.root / "arms" / "gate" / "last"))
    assert figures["gate_rate"] == first["gate_rate"]


def test_the_groups_of_a_step_are_by_the_weights_of_that_step(finished):
    arm = paths_of(finished.study, "tiny", 0).root / "arms" / "gate"
    steps = [json.loads(line) for line in (arm / "metrics.jsonl").read_text().splitlines()]
    assert [step["staleness"] for step in steps if step["kind"] == "step"] == [0.0] * 4


class Nobody:
    """Measures no trust in the ranker, for anybody."""

    def measure(self, examples):
        return np.zeros(len(examples), dtype=np.float32)


def test_a_gate_by_user_admits_by_the_trust_that_is_measured(finished, tmp_path):
    paths = paths_of(finished.study, "tiny", 0)
    row = json.loads((paths.root / "arms" / "trust" / ROW).read_text())
    assert 0 < row["cost"]["gate_rate"] < 1
    config = arm_config(finished.study, "tiny", "trust", 0, None)
    assert train_arm(config, paths, tmp_path / "a", no_progress)["gate_rate"] == row["cost"]["gate_rate"]
    assert train_arm(config, paths, tmp_path / "b", no_progress, Nobody())["gate_rate"] == 0


def test_what_is_done_is_left_and_what_changed_is_done_again(finished, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study_run, "run_tasks", run_here)
    monkeypatch.setattr(
        study_run,
        "train_arm",
        lambda config, *rest: trained.append(config.objective) or train_arm(config, *rest),
    )
    study = finished.study
    assert study_run.run_study(study, Silent()) == [] and trained == []
    copied = tmp_path / "studies"
    shutil.copytree(study.directory, copied / study.name)
    arms = {**study.arms, "heavy": study.arms["heavy"].model_copy(update={"set": study.arms["mixture"].set})}
    changed = study.model_copy(update={"output": str(copied), "arms": arms, "seeds": (0,)})
    assert study_run.run_study(changed, Silent()) == []
    assert [objective.weight for objective in trained] == [2]


def test_an_arm_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    study = load_study(write_study(tmp_path, seeds=[0]))
    monkeypatch.setattr(study_run, "run_tasks", run_here)

    def train(config, *rest):
        if config.objective.type == "adagrpo" and config.objective.gate.parts == "difficulty":
            raise RankerError("the ranker is ill")
        return train_arm(config, *rest)

    monkeypatch.setattr(study_run, "train_arm", train)
    failed = study_run.run_study(study, Silent())
    assert failed == [
        "tiny seed 0 gate: the ranker is ill",
        "tiny seed 0 random: the gate's rate of gate is not known: it failed, or has no gate",
    ]
    assert status_lines(study)[0].endswith("5 of 7 done")
    assert "tiny  gate  seeds 0 are left" in status_lines(study)


def test_a_study_of_which_nothing_is_done_has_no_table(tmp_path):
    with pytest.raises(RunError, match="has no arm that is done"):
        gather(load_study(write_study(tmp_path)))


def test_a_gate_by_user_has_its_halves_and_a_random_gate_of_its_rate(tmp_path, monkeypatch):
    arms = {
        "user": {"set": ["objective.gate={parts: trust, trust: {above: 0.5, others: 200}}"]},
        "random": {"rate_of": "user"},
    }
    study = load_study(write_study(tmp_path, seeds=[0], arms=arms, against=["user"], best_of={}))
    monkeypatch.setattr(study_run, "run_tasks", run_here)
    assert study_run.run_study(study, Silent()) == []
    root = paths_of(study, "tiny", 0).root
    assert (root / "ranker-halves" / "without-1").is_dir()
    rate = json.loads((root / "arms" / "user" / ROW).read_text())["cost"]["gate_rate"]
    assert 0 < rate < 1
    steps = [json.loads(line) for line in (root / "arms" / "user" / "metrics.jsonl").read_text().splitlines()]
    known = [step for step in steps if step["kind"] == "step" and "trusted" in step]
    assert known and all(0 <= step["trust"] <= 1 for step in known)
    lower = {**arms, "user": {"set": ["objective.gate={parts: trust, trust: {above: 0.0, others: 200}}"]}}
    changed = load_study(write_study(tmp_path, seeds=[0], arms=lower, against=["user"], best_of={}))
    assert study_run.run_study(changed, Silent()) == []
    assert json.loads((root / "arms" / "user" / ROW).read_text())["cost"]["gate_rate"] > rate
