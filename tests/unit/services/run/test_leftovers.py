"""A run directory that meets other data, other settings, or what an earlier start left."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from sluice.catalog.errors import PolicyError, RunError
from sluice.catalog.files import digest_files
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.learner.objectives.settings.objective import NllObjective
from sluice.learner.policy.policy import load_policy
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run import arms, leftovers, train
from sluice.services.stages.evaluate import run_evaluation
from sluice.services.stages.prepare import prepare_data
from sluice.services.stages.pretrain import run_pretraining
from tests.tiny_data import tiny_dataset

SMALL = {"hidden_size": 32, "layers": 1, "heads": 1, "feed_forward_size": 32}


def prepared(directory: Path, **learner: object) -> RunConfig:
    """A run whose data and start are there."""
    settings = tiny_dataset(directory / "source").settings
    config = RunConfig(
        name="a", output=str(directory), data=settings, policy=SMALL, pretrain={"epochs": 0}, learner=learner
    )
    prepare_data(config.data, RunPaths.of(config).data)
    run_pretraining(config, lambda *_: None)
    return config


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return prepared(tmp_path)


def log_of(config: RunConfig) -> Path:
    return Path(config.data.source.interactions[0])


def trained_control(config: RunConfig) -> RunPaths:
    paths = RunPaths.of(config)
    for place in (paths.control, paths.control_last, paths.root / "tensorboard" / "metrics-control"):
        place.mkdir(parents=True)
    arms.mark_trained(paths, "control", arms.arm_inputs(config, NllObjective()))
    return paths


def is_current(config: RunConfig, paths: RunPaths) -> bool:
    return arms.is_trained(paths, "control", arms.arm_inputs(config, NllObjective()))


def test_a_run_is_resumed_with_its_own_data_wherever_they_lie(config: RunConfig, tmp_path: Path):
    leftovers.check_same_data(config, RunPaths.of(config))
    moved = tmp_path / "elsewhere.parquet"
    log_of(config).rename(moved)
    source = config.data.source.model_copy(update={"interactions": (str(moved),)})
    other = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    leftovers.check_same_data(other, RunPaths.of(config))


def test_a_run_is_not_resumed_with_other_data(config: RunConfig):
    paths = RunPaths.of(config)
    before = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*")}
    catalogue = Path(config.data.source.catalogue)
    catalogue.write_bytes(log_of(config).read_bytes())
    (paths.arm("train").kept / "checkpoint_1").mkdir(parents=True)
    with pytest.raises(RunError, match=r"the data of this run have changed .*catalogue.parquet"):
        train.run_training(config, "last")
    assert {path: path.stat().st_mtime_ns for path in before if path != paths.root} == {
        path: value for path, value in before.items() if path != paths.root
    }


def test_a_file_more_or_less_is_other_data(config: RunConfig, tmp_path: Path):
    paths, more = RunPaths.of(config), tmp_path / "more.parquet"
    table = pq.read_table(log_of(config))
    pq.write_table(table.slice(0, 3), more)
    source = config.data.source
    for changes, named in (
        ({"interactions": (*source.interactions, str(more))}, "more.parquet"),
        ({"catalogue": None}, "catalogue.parquet"),
    ):
        data = config.data.model_copy(update={"source": source.model_copy(update=changes)})
        with pytest.raises(RunError, match=named):
            leftovers.check_same_data(config.model_copy(update={"data": data}), paths)


def test_a_run_is_not_resumed_with_data_that_would_be_prepared_otherwise(config: RunConfig):
    manifest = RunPaths.of(config).data / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with pytest.raises(RunError, match="prepared in format 0"):
        leftovers.check_same_data(config, RunPaths.of(config))


def test_a_control_is_used_again_only_with_its_own_settings(config: RunConfig):
    paths = RunPaths.of(config)
    assert not is_current(config, paths)
    trained_control(config)
    assert is_current(config, paths)
    for changes, current in (
        ({"lr": 0.02}, False),
        ({"prompts_per_step": 8}, False),
        ({"steps": 7}, False),
    ):
        learner = config.learner.model_copy(update=changes)
        assert is_current(config.model_copy(update={"learner": learner}), paths) == current
    (paths.policy / "inputs.json").write_text("{}")  # another start
    assert not is_current(config, paths)


@pytest.mark.parametrize(
    ("lr", "expected"), [(1e-4, ["train"]), (0.02, ["train", "control"])], ids=["same", "other settings"]
)
def test_a_new_start_trains_the_control_again_when_its_settings_changed(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, lr: float, expected: list[str]
):
    paths = trained_control(config)
    for place in (paths.best, paths.last, paths.root / "tensorboard" / "metrics", paths.arm("mixture").best):
        place.mkdir(parents=True)
    former = [
        paths.summary,
        paths.root / "metrics.jsonl",
        paths.root / "journal.jsonl",
        paths.root / "report.html",
        paths.ranks,
        paths.trust,
    ]
    for file in former:
        file.touch()
    names = with_stand_ins(monkeypatch)

    def check_what_is_left() -> None:
        assert not any(file.exists() for file in former)
        assert not paths.best.exists() and not paths.last.exists()
        assert not (paths.root / "tensorboard" / "metrics").exists()
        assert not paths.arm("mixture").best.exists()
        assert paths.control.exists() == (paths.root / "tensorboard" / "metrics-control").exists()
        assert paths.control.exists() == (expected == ["train"])

    names.on_train = check_what_is_left
    learner = config.learner.model_copy(update={"lr": lr})
    changed = config.model_copy(update={"learner": learner})
    train._train(changed, paths, None, None)
    assert names == expected
    assert is_current(changed, paths)


class Names(list[str]):
    """The trainings that were begun, and what to do when the post-training is."""

    def on_train(self) -> None:
        """Nothing."""


class NoFleet:
    """Stands for the actors, which are not started."""

    queue = SimpleNamespace(status=lambda: SimpleNamespace(accounting={"trained": 8}))
    restarts = 3

    def __getattr__(self, _name: str) -> object:
        return lambda *_: {}


def with_stand_ins(monkeypatch: pytest.MonkeyPatch, steps: int = 4) -> Names:
    """Nothing is trained; each post-training makes `steps` steps."""
    names = Names()

    def run_learner(_config: RunConfig, paths: RunPaths, name: str, *_rest: object, **_named: object) -> None:
        if name == "train":
            names.on_train()
        names.append(name)
        paths.arm(name).last.mkdir(parents=True, exist_ok=True)

    figures = {"time": {}, "throughput": {"learner_steps": steps, "staleness": float("nan")}}
    monkeypatch.setattr(train, "run_learner", run_learner)
    monkeypatch.setattr(train, "start_fleet", lambda *_: NoFleet())
    monkeypatch.setattr(train, "reserve_places", lambda _: None)
    monkeypatch.setattr(train, "_engines", lambda *_, **__: train.contextlib.nullcontext())
    monkeypatch.setattr(train, "_figures", lambda *_: dict(figures))
    return names


class Lines(list[str]):
    """A reporter."""

    def line(self, text: str) -> None:
        self.append(text)


def with_learner(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"learner": config.learner.model_copy(update=changes)})


def test_a_run_that_has_ended_starts_no_fleet_when_it_is_resumed(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    paths, names, told = RunPaths.of(config), with_stand_ins(monkeypatch), Lines()
    done = with_learner(config, steps=4)
    figures = train._train(done, paths, told, None)
    assert names == ["train", "control"] and told == []
    with monkeypatch.context() as patched:
        patched.setattr(train, "start_fleet", lambda *_: pytest.fail("a fleet was started"))
        again = train._train(done, paths, told, "last")
        train._train(with_learner(done, lr=0.5), paths, told, "last")  # it has no step left
    assert names == ["train", "control", "control"]  # the last one for its own learning rate
    assert "has ended, after 4 steps" in told[0]
    assert (again["restarts"], again["time"]) == (figures["restarts"], figures["time"])
    train._train(with_learner(config, steps=6), paths, told, "last")
    assert names[3:] == ["train", "control"]


def test_a_run_that_goes_back_to_its_best_checkpoint_is_trained_though_it_had_ended(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    paths, names = RunPaths.of(config), with_stand_ins(monkeypatch)
    done = with_learner(config, steps=4)
    train._train(done, paths, Lines(), None)
    names.on_train = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # and is interrupted
    with pytest.raises(KeyboardInterrupt):
        train._train(done, paths, Lines(), "best")
    assert arms.ended_figures(done, paths) is None


def test_a_run_out_of_patience_has_ended_for_the_settings_that_it_had(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    paths, names = RunPaths.of(config), with_stand_ins(monkeypatch, steps=4)
    impatient = with_learner(config, steps=9, patience=1)
    train._train(impatient, paths, Lines(), None)
    train._train(impatient, paths, Lines(), "last")
    assert names == ["train", "control"]
    train._train(with_learner(impatient, patience=5), paths, Lines(), "last")
    assert names[2:] == ["train", "control"]


def test_what_auto_comes_to(tmp_path: Path):
    paths = RunPaths(tmp_path)
    paths.arm("train").kept.mkdir(parents=True)  # a run that died before its first checkpoint
    assert not leftovers.has_begun(paths)
    assert (
        leftovers.check_checkpoints(paths, "auto") is None
        and leftovers.check_checkpoints(paths, None) is None
    )
    with pytest.raises(RunError, match="nothing to resume"):
        leftovers.check_checkpoints(paths, "last")
    (paths.arm("train").kept / "checkpoint_1").mkdir()
    assert leftovers.check_checkpoints(paths, "auto") == "last"
    with pytest.raises(RunError, match="no best checkpoint yet"):
        leftovers.check_checkpoints(paths, "best")
    with pytest.raises(RunError, match="already holds a post-training"):
        leftovers.check_checkpoints(paths, None)


def test_a_best_checkpoint_that_was_moved_away_is_there(tmp_path: Path):
    paths = RunPaths(tmp_path)
    best = paths.arm("train").best_checkpoint
    best.with_name(".train-best.old-0a1b2c3d").mkdir(parents=True)
    assert leftovers.has_begun(paths) and leftovers.check_checkpoints(paths, "best") == "best"
    leftovers.settle(paths)
    assert best.is_dir()


def test_a_damaged_best_checkpoint_is_not_gone_back_to(config: RunConfig):
    paths = RunPaths.of(config)
    kept, best = paths.arm("train").kept, paths.arm("train").best_checkpoint
    (kept / "checkpoint_1").mkdir(parents=True)
    best.mkdir()
    (best / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"train-best is damaged: .*state.json cannot be read"):
        train.run_training(config, "best")
    assert (kept / "checkpoint_1").is_dir()


def test_a_run_without_a_whole_checkpoint_is_refused_before_anything_is_written(config: RunConfig):
    paths = RunPaths.of(config)
    (paths.arm("train").kept / "checkpoint_1").mkdir(parents=True)
    before = digest_files(paths.root)
    with pytest.raises(RunError, match="no checkpoint of this run is whole"):
        train.run_training(config, "last")
    assert digest_files(paths.root) == before


def test_a_start_carries_its_catalogue_and_another_data_set_refuses_it(config: RunConfig, tmp_path: Path):
    paths, other = RunPaths.of(config), prepared(tmp_path / "other")
    dataset = train.Dataset.open(paths.data)
    own = fingerprint_catalogue(dataset.item_ids, dataset.codes)
    assert load_policy(paths.policy).model.config.sluice_catalogue == own
    assert run_evaluation(config, paths.policy, "valid")["users"] > 0
    run_evaluation(other, paths.policy, "valid")  # the same items with the same codes

    # The same items with other codes: what a policy of other data would be scored against in silence.
    manifest = json.loads((paths.policy / "config.json").read_text())
    (paths.policy / "config.json").write_text(json.dumps(manifest | {"sluice_catalogue": "0" * 16}))
    for use in (
        lambda: run_evaluation(config, paths.policy, "valid"),
        lambda: train._own_layout(paths),
        lambda: run_pretraining(
            config.model_copy(
                update={"policy": config.policy.model_copy(update={"base": str(paths.policy)})}
            ),
            lambda *_: None,
        ),
    ):
        with pytest.raises(PolicyError, match="was made for another catalogue"):
            use()
