"""What a run is made from stays what it is while checkpoints rest on it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sluice.catalog.errors import ConfigError, RunError
from sluice.catalog.files import digest_files
from sluice.services.config import RunConfig
from sluice.services.config_resume import check_resume
from sluice.services.paths import RunPaths
from sluice.services.run import inputs, leftovers, manifest
from sluice.services.stages.fit_ranker import run_ranker_fit
from sluice.services.stages.pretrain import run_pretraining
from tests.unit.services.begun_run import begin_run


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run that has begun, with a stand-in for its ranker and for its checkpoint."""
    config = begin_run(tmp_path)
    paths = RunPaths.of(config)
    manifest.record_fingerprints(paths.root, inputs.take_fingerprints(config, paths))
    (paths.arm("train").kept / "checkpoint_1").mkdir(parents=True)
    return config


def refusal(config: RunConfig) -> str:
    with pytest.raises(RunError, match="is not what the run began with") as raised:
        inputs.check_unchanged(config, RunPaths.of(config))
    return str(raised.value)


def test_a_manifest_has_a_fingerprint_of_each_thing(config: RunConfig):
    paths = RunPaths.of(config)
    recorded = json.loads((paths.root / "manifest.json").read_text())["fingerprints"]
    assert list(recorded) == ["data", "codes", "policy", "ranker", "settings"]
    assert len(set(recorded.values())) == 5
    inputs.check_unchanged(config, paths)
    manifest.write_manifest(config, paths.root, keep_fingerprints=True)
    assert manifest.read_fingerprints(paths.root) == recorded
    manifest.write_manifest(config, paths.root)
    assert manifest.read_fingerprints(paths.root) == {}
    inputs.check_unchanged(config, paths)  # as of a run of an earlier release


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("policy/config.json", "policy/config.json is not as it was written"),
        ("policy/inputs.json", "policy/, the start has fingerprint"),
        ("ranker/weights", "the ranker has fingerprint"),
        ("data/examples.parquet", "data/examples.parquet is not as it was written"),
    ],
)
def test_a_file_that_changed_is_named(config: RunConfig, file: str, named: str):
    place = RunPaths.of(config).root / file
    place.write_bytes(place.read_bytes() + b" ")
    assert named in refusal(config)
    place.unlink()
    refusal(config)


def test_other_data_in_the_place_of_the_run_s_are_named(config: RunConfig, tmp_path: Path):
    """As after a `prepare` by hand: whole, and other codes."""
    other = config.model_copy(
        update={
            "name": "b",
            "data": config.data.model_copy(
                update={"semantic_ids": config.data.semantic_ids.model_copy(update={"level_sizes": (3, 3)})}
            ),
        }
    )
    inputs.prepare_run(other, RunPaths.of(other), lambda *_: None, keep=False)
    paths = RunPaths.of(config)
    shutil.rmtree(paths.data)
    shutil.copytree(RunPaths.of(other).data, paths.data)
    told = refusal(config)
    assert "data/ has fingerprint" in told and "the catalogue of data/ (items or their semantic IDs)" in told


def test_a_ranker_of_the_user_s_whose_module_changed_is_named(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "ranker_of_mine.py"
    module.write_text("class R: pass\n")
    own = config.model_copy(update={"ranker": config.ranker.model_copy(update={"use": "ranker_of_mine:R"})})
    paths = RunPaths.of(own)
    manifest.record_fingerprints(paths.root, inputs.take_fingerprints(own, paths))
    inputs.check_unchanged(own, paths)
    module.write_text("class R:\n    scale = 2\n")
    assert "the ranker has fingerprint" in refusal(own)
    assert "ranker_of_mine" not in sys.modules, "nothing of the user's runs for that"


def test_without_a_record_the_settings_are_told_apart_by_their_fingerprint(config: RunConfig):
    paths = RunPaths.of(config)
    longer = config.model_copy(
        update={"learner": config.learner.model_copy(update={"steps": 7}), "output": str(paths.root / "..")}
    )
    other = config.model_copy(update={"seed": 1, "name": "a-seed0/../a"})
    inputs.check_unchanged(longer, paths)
    with pytest.raises(ConfigError, match="seed 0 -> 1"):
        check_resume(config.model_copy(update={"seed": 1}), paths.root)
    inputs.check_unchanged(other, paths)  # the record says what changed
    (paths.root / "config.yaml").unlink()
    inputs.check_unchanged(longer, paths)
    with pytest.raises(RunError, match="the settings has fingerprint"):
        inputs.check_unchanged(other, paths)


def test_a_manifest_that_cannot_be_read_is_no_reason_to_trust_what_is_there(config: RunConfig):
    paths = RunPaths.of(config)
    (paths.root / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="move that file away"):
        inputs.check_unchanged(config, paths)


def test_what_checkpoints_rest_on_is_not_built_again_though_the_log_has_moved(
    config: RunConfig, tmp_path: Path
):
    paths, before = RunPaths.of(config), digest_files(RunPaths.of(config).root)
    log = Path(config.data.source.interactions[0])
    log.rename(tmp_path / "moved.parquet")
    source = config.data.source.model_copy(update={"interactions": (str(tmp_path / "moved.parquet"),)})
    moved = config.model_copy(
        update={
            "data": config.data.model_copy(update={"source": source}),
            "policy": config.policy.model_copy(update={"layers": 2}),  # a stage that would be built again
        }
    )
    leftovers.check_same_data(moved, paths)
    assert inputs.prepare_run(moved, paths, lambda *_: None, keep=True).reused
    run_pretraining(moved, lambda *_: None, keep=True)
    assert digest_files(paths.root) == before
    assert not inputs.prepare_run(moved, paths, lambda *_: None, keep=False).reused
    run_pretraining(moved, lambda *_: None)
    assert digest_files(paths.policy) != {
        name.removeprefix("policy/"): digest for name, digest in before.items() if name.startswith("policy/")
    }


def test_a_ranker_that_is_kept_is_not_fitted_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sluice.learner.ranker.fit.fit_ranker", lambda *_: pytest.fail("fitted"))
    paths = RunPaths.of(config)
    (paths.ranker / "inputs.json").write_text('{"seed": 9}')
    before = digest_files(paths.ranker)
    run_ranker_fit(config, lambda *_: None, keep=True)
    assert digest_files(paths.ranker) == before


def test_a_base_of_another_content_makes_another_start(config: RunConfig, tmp_path: Path):
    base = shutil.copytree(RunPaths.of(config).policy, tmp_path / "base")
    based = config.model_copy(
        update={"name": "b", "policy": config.policy.model_copy(update={"base": str(base)})}
    )
    paths = RunPaths.of(based)
    inputs.prepare_run(based, paths, lambda *_: None, keep=False)
    run_pretraining(based, lambda *_: None)
    stamp = (paths.policy / "inputs.json").read_text()
    run_pretraining(based, lambda *_: None)
    assert (paths.policy / "inputs.json").read_text() == stamp
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    run_pretraining(based, lambda *_: None)
    assert (paths.policy / "inputs.json").read_text() != stamp
