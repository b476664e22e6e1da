"""A new run from a checkpoint of another one."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from sluice.catalog.errors import ConfigError, RunError
from sluice.catalog.files import digest_files
from sluice.learner.policy.policy import load_policy
from sluice.learner.training.checkpoint import (
    RunState,
    find_fault,
    read_rank,
    read_state,
    seal_part,
    write_checkpoint,
    write_rank,
)
from sluice.services.config import RunConfig
from sluice.services.config_resume import check_resume
from sluice.services.paths import RunPaths
from sluice.services.run import inputs, leftovers, manifest
from sluice.services.run.fork import ForkPoint, fork_run
from sluice.services.run.metrics_file import read_metrics
from tests.unit.services.begun_run import begin_run

SNAPSHOT = {"feed": {"seed": 0}, "counters": {"trained": 4}}


def changed(config: RunConfig, **changes: object) -> RunConfig:
    """With other settings; those of a group as a mapping."""
    values = config.model_dump()
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return RunConfig.model_validate(values)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with checkpoints of steps 20 and 40, and the best one of step 20."""
    config = begin_run(tmp_path)
    paths = RunPaths.of(config)
    paths.catalogue.mkdir()
    (paths.catalogue / "00001.parquet").touch()
    manifest.record_fingerprints(paths.root, inputs.take_fingerprints(config, paths))
    policy, arm, lines = load_policy(paths.policy), paths.arm("train"), ""
    for step, score in ((20, 0.5), (40, 0.25)):
        lines += json.dumps({"kind": "step", "step": step}) + "\n"
        lines += json.dumps({"kind": "eval", "step": step, "hr@10": score, "ndcg@10": score / 2}) + "\n"
        checkpoint = arm.kept / f"checkpoint_{step}"
        state = RunState(
            step=step,
            version=step,
            best=(0.5, 0.25),
            source=SNAPSHOT,
            metrics_bytes=len(lines),
            since_best=1,
            journal_bytes=2 * step,
        )
        with torch.no_grad():
            policy.model.model.embed_tokens.weight += 1
        checkpoint.mkdir(parents=True)
        write_rank(checkpoint, 0, {"step": step, "moments": torch.arange(3.0)})
        write_checkpoint(checkpoint, state, policy)
        seal_part(checkpoint, 0, 1)
    shutil.copytree(arm.kept / "checkpoint_20", arm.best_checkpoint)
    arm.metrics.write_text(lines)
    arm.journal.write_text("j" * 90)
    return config


def test_a_fork_point_is_a_directory_with_or_without_a_step():
    assert ForkPoint.parse("runs/a-seed0@40") == ForkPoint(run_directory=Path("runs/a-seed0"), step=40)
    assert ForkPoint.parse("runs/a@b") == ForkPoint(run_directory=Path("runs/a@b"), step=None)
    assert ForkPoint.parse("runs/a") == ForkPoint(run_directory=Path("runs/a"), step=None)


@pytest.mark.parametrize(("point", "step", "score"), [("", 40, 0.25), ("@40", 40, 0.25), ("@20", 20, 0.5)])
def test_a_fork_goes_on_from_the_checkpoint_with_what_it_rests_on(
    config: RunConfig, point: str, step: int, score: float
):
    source, fork = RunPaths.of(config), changed(config, name="b", learner={"lr": 0.5})
    before, paths = digest_files(source.root), RunPaths.of(fork)
    told = fork_run(fork, ForkPoint.parse(f"{source.root}{point}"))
    assert told == f"forked from {source.root} at step {step}"
    best = paths.arm("train").best_checkpoint
    origin = source.arm("train").kept / f"checkpoint_{step}"
    assert find_fault(best) is None
    # The forked checkpoint is the best one so far, and the prompts go on where they stood.
    assert read_state(best) == dataclasses.replace(read_state(origin), best=(score, score / 2), since_best=0)
    assert read_rank(best, 0)["step"] == step
    assert digest_files(best / "policy") == digest_files(origin / "policy")
    for taken in ("data", "policy", "ranker", "catalogue"):
        assert digest_files(getattr(paths, taken)) == digest_files(getattr(source, taken))
    assert [row["step"] for row in read_metrics(paths.arm("train").metrics, "step")] == list(
        range(20, step + 1, 20)
    )
    assert len(paths.arm("train").journal.read_text()) == 2 * step
    assert json.loads((paths.root / "fork.json").read_text())["step"] == step
    # It is a run that goes on from here.
    assert leftovers.check_checkpoints(paths, "auto") == "last"
    assert check_resume(fork, paths.root) == ()
    leftovers.check_same_data(fork, paths)
    inputs.check_unchanged(fork, paths)
    assert digest_files(source.root) == before


def test_another_seed_has_an_order_of_its_own_and_another_ranker_is_fitted_anew(config: RunConfig):
    source = RunPaths.of(config)
    fork = changed(config, seed=1, ranker={"epochs": 9})
    paths = RunPaths.of(fork)
    paths.ranker.mkdir(parents=True)
    (paths.ranker / "of-an-earlier-start").touch()
    fork_run(fork, ForkPoint(run_directory=source.root, step=None))
    state = read_state(paths.arm("train").best_checkpoint)
    assert (state.source, state.journal_bytes) == (None, 0)
    assert not paths.arm("train").journal.exists()
    assert not paths.ranker.exists()


def test_what_does_not_fit_is_refused_and_nothing_is_written(config: RunConfig, tmp_path: Path):
    point = ForkPoint(run_directory=RunPaths.of(config).root, step=None)
    for changes, named in (
        ({"policy": {"layers": 2}}, "policy.layers 1 -> 2 .the checkpoints hold this model"),
        ({"data": {"min_interactions": 4}}, "data.min_interactions 3 -> 4"),
        ({"learner": {"workers": 2}}, "learner.workers 1 -> 2"),
        ({"learner": {"steps": 40}}, "learner.steps 40 leaves no step after the fork at step 40"),
    ):
        other = changed(config, name="b", **changes)
        with pytest.raises(ConfigError, match=named):
            fork_run(other, point)
        assert not other.directory.exists()
    with pytest.raises(ConfigError, match="is the run itself: give another name, seed or output"):
        fork_run(config, point)
    with pytest.raises(RunError, match="is no run directory"):
        fork_run(changed(config, name="b"), ForkPoint(run_directory=tmp_path / "gone", step=None))


def test_a_deterministic_run_is_forked_with_its_own_seed(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    point = ForkPoint(run_directory=RunPaths.of(config).root, step=None)
    fixed = config.model_copy(update={"deterministic": True})
    monkeypatch.setattr("sluice.services.run.fork.read_record", lambda _: fixed)
    with pytest.raises(ConfigError, match=r"seed 0 -> 1 .it decides .* the order of the prompts"):
        fork_run(fixed.model_copy(update={"seed": 1}), point)
    assert fork_run(fixed.model_copy(update={"name": "b"}), point).endswith("at step 40")


def test_other_data_or_another_catalogue_are_refused(config: RunConfig):
    point = ForkPoint(run_directory=RunPaths.of(config).root, step=None)
    log = Path(config.data.source.interactions[0])
    other = changed(config, name="b")
    catalogue = Path(config.data.source.catalogue)
    kept = catalogue.read_bytes()
    catalogue.write_bytes(log.read_bytes())
    with pytest.raises(RunError, match=r"data of this run have changed .*catalogue.parquet"):
        fork_run(other, point)
    catalogue.write_bytes(kept)
    (RunPaths.of(config).policy / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"policy/config.json is not as it was written"):
        fork_run(other, point)
    assert not other.directory.exists()


def test_a_step_without_a_whole_checkpoint_is_refused_with_those_that_there_are(config: RunConfig):
    paths, other = RunPaths.of(config), changed(config, name="b")
    with pytest.raises(
        RunError, match="no checkpoint at step 30 that is whole; there are those of steps 20, 40"
    ):
        fork_run(other, ForkPoint(run_directory=paths.root, step=30))
    (paths.arm("train").kept / "checkpoint_40" / "rank-0.safetensors").unlink()
    with pytest.raises(RunError, match=r"steps 20; checkpoint_40 is damaged: rank-0\.safetensors is missing"):
        fork_run(other, ForkPoint(run_directory=paths.root, step=40))


def test_a_fork_that_was_interrupted_has_not_begun_and_is_made_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    other = changed(config, name="b")
    point, paths = ForkPoint(run_directory=RunPaths.of(config).root, step=None), RunPaths.of(other)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            "sluice.services.run.fork.rewrite_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        fork_run(other, point)
    assert not leftovers.has_begun(paths) and leftovers.is_forking(paths, "auto", "a")
    fork_run(other, point)
    assert leftovers.has_begun(paths) and not leftovers.is_forking(paths, "auto", "a")
