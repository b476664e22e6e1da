"""Checkpoints and the metrics file that belongs to them."""

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sluice.catalog import files
from sluice.catalog.errors import RunError
from sluice.catalog.files import digest_files
from sluice.learner.policy.policy import load_policy
from sluice.learner.training.checkpoint import (
    FORMAT,
    RunState,
    add_to_best,
    find_fault,
    read_rank,
    read_state,
    replace_best,
    seal_part,
    settle_best,
    write_checkpoint,
    write_rank,
)
from sluice.learner.training.metrics_log import MetricsLog, board_of
from tests.unit.learner.learner_cases import tiny_policy


class RunsCode:
    """What a pickle can do: make a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


STATE = RunState(
    step=40, version=10, best=(0.25, 0.125), source={"cursor": 7, "outstanding": [[3, 1]]}, metrics_bytes=99
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    policy = tiny_policy()
    write_checkpoint(tmp_path, STATE, policy)
    write_rank(tmp_path, 1, {"optimizer": {"lr": 0.5}, "rng": torch.arange(3)})
    assert read_state(tmp_path) == STATE
    assert read_rank(tmp_path, 1)["rng"].tolist() == [0, 1, 2]
    loaded = dict(load_policy(tmp_path / "policy").model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(loaded[name], parameter)


def test_a_new_best_checkpoint_takes_the_place_of_the_old_one(tmp_path):
    best, policies = tmp_path / "train-best", tmp_path / "best"
    for step, seed in ((40, 0), (60, 1)):
        policy = tiny_policy(seed=seed)
        for rank in (0, 1):
            part = tmp_path / f"part-{step}-{rank}"
            part.mkdir()
            write_rank(part, rank, {"step": step})
            if rank == 0:
                write_checkpoint(part, dataclasses.replace(STATE, step=step), policy)
            add_to_best(part, best)
        replace_best(best, policies)
        assert read_state(best).step == step
        assert [read_rank(best, rank)["step"] for rank in (0, 1)] == [step, step]
        for place in (best / "policy", policies):
            loaded = dict(load_policy(place).model.named_parameters())
            assert all(torch.equal(loaded[name], value) for name, value in policy.model.named_parameters())


def test_what_a_dead_worker_left_of_a_best_checkpoint_is_not_in_the_next(tmp_path):
    best, policies = tmp_path / "train-best", tmp_path / "best"
    for name, parts in {"old": ("policy", "leftover"), "part": ("policy",)}.items():
        for part in parts:
            (tmp_path / name / part).mkdir(parents=True)
    add_to_best(tmp_path / "old", best)
    (tmp_path / ".best.new-0a1b2c3d").mkdir()  # its policy, half copied
    settle_best(best, policies)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "part"]
    add_to_best(tmp_path / "part", best)
    replace_best(best, policies)
    assert [path.name for path in best.iterdir()] == ["policy"]


@pytest.mark.parametrize("dies_at", range(4))
def test_a_process_that_dies_between_two_renames_loses_no_best_checkpoint(tmp_path, monkeypatch, dies_at):
    best, policies, real, renames = tmp_path / "train-best", tmp_path / "best", os.rename, []

    def rename(source, target):
        if len(renames) == dies_at:
            raise Dies
        renames.append(target)
        real(source, target)

    def write(step):
        add_to_best(tmp_path / f"part-{step}", best)
        replace_best(best, policies)

    for step in (40, 60):
        whole_checkpoint(tmp_path / f"part-{step}", step=step, seed=step)
    write(40)
    with monkeypatch.context() as patched, pytest.raises(Dies):
        patched.setattr(os, "rename", rename)
        # What a killed process does not do: tidy up behind itself.
        patched.setattr(shutil, "rmtree", lambda *_args, **_named: None)
        patched.setattr(files, "_put_back", lambda *_: None)
        write(60)
    settle_best(best, policies)
    step = 60 if dies_at >= 2 else 40  # the renames of the checkpoint are the first two
    assert read_state(best).step == step and find_fault(best) is None
    assert digest_files(policies) == digest_files(best / "policy")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


class Dies(BaseException):
    """Stands for a kill."""


def whole_checkpoint(directory, step=40, seed=0, workers=2):
    """As the workers write one: each its part, which Ray Train lays into one directory."""
    for rank in range(workers):
        part = directory.with_name(f"{directory.name}.part-{rank}")
        part.mkdir(parents=True)
        write_rank(part, rank, {"step": step, "moments": torch.arange(3.0)})
        if rank == 0:
            write_checkpoint(part, dataclasses.replace(STATE, step=step), tiny_policy(seed=seed))
        seal_part(part, rank, workers)
        shutil.copytree(part, directory, dirs_exist_ok=True)
        shutil.rmtree(part)
    return directory


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_damage_of_any_file_of_a_checkpoint_is_named_with_the_file(tmp_path):
    whole = whole_checkpoint(tmp_path / "whole")
    names = sorted(digest_files(whole))
    assert {"state.json", "rank-1.safetensors", "sums-0.json", "policy/model.safetensors"} <= set(names)
    assert find_fault(whole) is None
    for name in names:
        for number, damage in enumerate((cut, flip, Path.unlink)):
            damaged = tmp_path / f"{name.replace('/', '-')}-{number}"
            shutil.copytree(whole, damaged)
            damage(damaged / name)
            fault = find_fault(damaged)
            assert fault is not None, (name, damage)
            if not name.startswith("sums-"):
                assert name in fault
            shutil.rmtree(damaged)


def test_a_checkpoint_that_one_worker_has_not_written_is_not_whole(tmp_path):
    whole = whole_checkpoint(tmp_path / "whole")
    for file in whole.glob("*-1.*"):
        file.unlink()
    assert find_fault(whole) == "sums-0.json tells of 2 workers, and 1 of them had written their part"
    (whole / "sums-0.json").unlink()
    assert find_fault(whole) == "sums-0.json is missing"


def test_a_checkpoint_of_a_format_without_sums_is_taken_as_it_is(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"format": 3}))
    assert find_fault(tmp_path) is None
    (tmp_path / "state.json").write_text("{")
    assert "state.json cannot be read" in find_fault(tmp_path)


def test_a_missing_worker_is_a_clear_error(tmp_path):
    write_rank(tmp_path, 0, {})
    with pytest.raises(RunError, match="no state of learner worker 1: resume with the same"):
        read_rank(tmp_path, 1)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a checkpoint"):
        read_state(tmp_path)
    for written in (0, FORMAT + 1):
        (tmp_path / "state.json").write_text(json.dumps({"format": written}))
        with pytest.raises(RunError, match=f"format than 2 or 3 or 4: {written}; resume it"):
            read_state(tmp_path)


def test_a_worker_s_part_of_format_2_is_read_and_runs_no_code(tmp_path):
    state = {"step": 4, "optimizer": {"state": {0: {"exp_avg": torch.arange(3.0)}}}, "betas": (0.9, 0.999)}
    torch.save(state, tmp_path / "rank-0.pt")
    read = read_rank(tmp_path, 0)
    assert (read["step"], read["betas"]) == (4, (0.9, 0.999))
    assert read["optimizer"]["state"][0]["exp_avg"].tolist() == [0, 1, 2]
    torch.save({"step": RunsCode(tmp_path / "ran")}, tmp_path / "rank-1.pt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        read_rank(tmp_path, 1)
    assert not (tmp_path / "ran").exists()


def test_a_worker_writes_what_needs_no_pickle(tmp_path):
    write_rank(tmp_path, 3, {"step": 4, "rng": torch.arange(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-3.json", "rank-3.safetensors"]


def test_a_resumed_log_repeats_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write("step", 1, {"nll": 2.5})
    kept = log.size
    log.write("step", 2, {"nll": 2.25})
    log.close()
    log = MetricsLog(path, kept)
    log.write("step", 2, {"nll": 2.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["nll"]) for row in rows] == [(1, 2.5), (2, 2.0)]


def test_a_log_that_was_lost_begins_again_after_its_last_whole_line(tmp_path):
    path, line = tmp_path / "metrics.jsonl", b'{"kind": "step"}\n'
    for left in (b"", line, line + b'{"kind": "st'):
        path.write_bytes(left)
        log = MetricsLog(path, 1000)
        log.write("eval", 7, {})
        log.close()
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        assert [row["kind"] for row in rows] == ["step"] * left.count(b"\n") + ["eval"]


def test_a_new_log_replaces_an_old_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n")
    log = MetricsLog(path, 0)
    log.write("eval", 0, {"split": "valid", "hr@10": 0.5})
    log.close()
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (row["kind"], row["split"], row["hr@10"]) == ("eval", "valid", 0.5)
    assert list((tmp_path / "tensorboard" / "metrics").iterdir())


def tensorboard_steps(path):
    """Of every curve, the steps that TensorBoard shows."""
    events = EventAccumulator(str(board_of(path)), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_step_once_after_a_resume_and_none_of_an_earlier_run(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(log, steps):
        log.write("start", steps[0] - 1, {"workers": 1})
        for step in steps:
            log.write("step", step, {"nll": float(step)})
        log.write("eval", steps[-1], {"hr@10": 0.5})
        size = log.size
        log.write("time", steps[-1], {"rank": 0})
        log.close()
        return size

    kept = write(MetricsLog(path, 0), [1, 2, 3])
    write(MetricsLog(path, kept, 3), [4, 5, 6, 7])
    write(MetricsLog(path, kept, 3), [4, 5])  # again from the same checkpoint
    assert tensorboard_steps(path) == {"step/nll": [1, 2, 3, 4, 5], "eval/hr@10": [3, 5]}
    write(MetricsLog(path, 0), [1])
    assert tensorboard_steps(path) == {"step/nll": [1], "eval/hr@10": [1]}


def test_a_mean_over_nothing_is_left_out(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write("step", 1, {"nll": 1.0, "reward_admitted": float("nan")})
    log.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "reward_admitted" not in row
    assert row["nll"] == 1.0
