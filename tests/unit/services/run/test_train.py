"""The start of a run: what it refuses, and what it keeps of a config that changed. No Ray is started."""

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from sluice.catalog.errors import ConfigError, RankerError, RunError
from sluice.services.config import RunConfig, dump_config, load_config
from sluice.services.paths import RunPaths
from sluice.services.run import train


class Began(Exception):
    """The data are about to be prepared."""


@pytest.fixture(autouse=True)
def _stop_at_the_data(monkeypatch: pytest.MonkeyPatch):
    def prepare_data(*_: object) -> None:
        raise Began

    monkeypatch.setattr(train.inputs, "prepare_data", prepare_data)


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: a\noutput: {tmp_path}\n")
    return load_config(path, overrides)


def started(tmp_path: Path, *overrides: str, checkpoint: bool = True) -> Path:
    """The directory of a run that began, with a checkpoint or before there was one."""
    config = config_of(tmp_path, *overrides)
    config.directory.mkdir()
    if checkpoint:
        place = config.directory / "checkpoints" / "train" / "checkpoint_1"
        place.mkdir(parents=True)
        (place / "state.json").write_text('{"format": 3}')
    (config.directory / "config.yaml").write_text(dump_config(config))
    return config.directory


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


def test_a_resume_that_changes_the_policy_is_refused_before_anything_is_written(tmp_path: Path):
    directory = started(tmp_path)
    before = contents(directory)
    with pytest.raises(ConfigError, match=r"policy\.layers 4 -> 5 \(the checkpoints hold this model\)"):
        train.run_training(config_of(tmp_path, "policy.layers=5"), "last")
    assert contents(directory) == before


def test_a_resume_with_more_steps_says_so_and_keeps_the_former_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    directory = started(tmp_path)
    former = (directory / "config.yaml").read_text()
    with pytest.raises(Began):
        train.run_training(config_of(tmp_path, "learner.steps=400", "learner.lr=1e-5"), "last")
    lines = capsys.readouterr().out.splitlines()
    assert (
        "resumed with other settings than before: learner.steps 200 -> 400, learner.lr 0.0001 -> 1e-05"
        in lines
    )
    assert "the config that was in force before is kept as config-1.yaml" in lines
    assert (directory / "config-1.yaml").read_text() == former
    assert load_config(directory / "config.yaml").learner.steps == 400


def test_a_resume_with_the_same_config_says_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = started(tmp_path)
    with pytest.raises(Began):
        train.run_training(config_of(tmp_path), "last")
    assert "config" not in capsys.readouterr().out
    assert set(contents(directory)) == {"config.yaml", "manifest.json"}


def test_a_resume_with_a_record_that_cannot_be_read_is_refused(tmp_path: Path):
    directory = started(tmp_path)
    (directory / "config.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="move that file away"):
        train.run_training(config_of(tmp_path), "last")
    (directory / "config.yaml").unlink()
    with pytest.raises(Began):
        train.run_training(config_of(tmp_path), "last")


def test_a_first_start_records_its_config(tmp_path: Path):
    with pytest.raises(Began):
        train.run_training(config_of(tmp_path))
    config = config_of(tmp_path)
    assert load_config(config.directory / "config.yaml") == config


def test_a_new_start_over_a_run_that_never_trained_keeps_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Whatever was built from other inputs is built again, so any setting may change."""
    directory = started(tmp_path, checkpoint=False)
    with pytest.raises(Began):
        train.run_training(config_of(tmp_path, "policy.layers=5"))
    assert "the config that was in force before is kept as config-1.yaml" in capsys.readouterr().out
    assert load_config(directory / "config-1.yaml").policy.layers == 4
    assert load_config(directory / "config.yaml").policy.layers == 5


def test_a_new_start_over_a_post_training_is_refused_and_leaves_its_config(tmp_path: Path):
    directory = started(tmp_path)
    before = contents(directory)
    with pytest.raises(RunError, match="already holds a post-training"):
        train.run_training(config_of(tmp_path, "policy.layers=5"))
    assert contents(directory) == before


@pytest.mark.parametrize(("resumed", "version"), [(True, 7), (False, 0)])
def test_rollouts_of_a_resumed_run_begin_once_its_weights_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resumed: bool, version: int
):
    monkeypatch.setattr(train, "_POLL_S", 0.001)
    began, versions, published = threading.Event(), [], threading.Event()
    board = SimpleNamespace(latest_version=lambda: 7 if published.is_set() else 0)

    def begin(_timeout_s: float) -> None:
        versions.append(board.latest_version())
        began.set()

    fleet = SimpleNamespace(publisher=board, begin=begin)
    reporter = train.Reporter.for_stream(io.StringIO())
    with train._engines(fleet, config_of(tmp_path), reporter, resumed=resumed):
        assert began.wait(0.1) != resumed
        published.set()
        assert began.wait(10)
    assert versions == [version]


def test_throughput_is_over_all_starts_of_the_training(tmp_path: Path):
    """The queue counts on where a run is resumed, so its seconds must too."""
    paths = RunPaths(tmp_path)
    rows = [("start", 0, 0.1), ("step", 1, 8.0), ("start", 1, 0.1), ("step", 2, 2.0)]
    lines = [{"kind": kind, "step": step, "time_s": time, "learner_version": 1} for kind, step, time in rows]
    paths.arm("train").metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    resumed = SimpleNamespace(seconds={"train": 2.5})
    figures = train._figures(paths, resumed, {"trained": 40})
    assert figures["throughput"]["groups_per_s"] == 4.0


def test_a_ranker_that_failed_in_the_judge_ends_the_run_with_its_name_once_all_is_written():
    assert train._end({"metrics": {}}) == 0
    with pytest.raises(RankerError, match=r"^the ranker my:R failed. Policies, summary and report are there"):
        train._end({"ranker_error": "the ranker my:R failed"})
