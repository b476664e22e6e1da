"""The manifest of a run, its recorded configs, and the version."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from sluice.services.config import RunConfig, load_config
from sluice.services.run import manifest

ROOT = Path(__file__).parents[4]


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def config_in(directory: Path, *overrides: str) -> RunConfig:
    path = directory / "run.yaml"
    path.write_text("name: a\n")
    return load_config(path, [f"output={directory}", *overrides])


def test_commit_and_dirty_flag(checkout: Path):
    commit = git(checkout, "rev-parse", "HEAD")
    assert manifest.git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "a.py").write_text("a = 2\n")
    assert manifest.git_state(checkout) == {"commit": commit, "dirty": True}


def test_a_copy_without_history_takes_what_submit_told(tmp_path: Path):
    told = {"commit": "abc", "dirty": True}
    assert manifest.git_state(tmp_path) is None
    assert manifest.describe_run(tmp_path, {})["git"] is None
    assert manifest.describe_run(tmp_path, {"SLUICE_GIT": json.dumps(told)})["git"] == told


def test_written_beside_the_config(tmp_path: Path):
    config = config_in(tmp_path)
    manifest.write_manifest(config, config.directory)
    assert load_config(config.directory / "config.yaml") == config
    written = json.loads((config.directory / "manifest.json").read_text())
    assert re.fullmatch(r"3\.11\.\d+", written["python"])
    assert {"ray", "torch", "transformers"} <= written["packages"].keys()
    assert written["host"]["cores"] >= 1 and written["host"]["memory_gib"] > 0


def test_it_names_no_path_of_the_machine(tmp_path: Path):
    assert str(ROOT) not in json.dumps(manifest.describe_run(ROOT, {}))


def test_a_config_with_other_settings_is_kept_under_a_number(tmp_path: Path):
    first, second, third = (config_in(tmp_path, f"learner.steps={steps}") for steps in (10, 20, 30))
    run = first.directory
    assert manifest.write_manifest(first, run) is None
    assert manifest.write_manifest(first, run) is None, "the same settings"
    assert manifest.write_manifest(second, run) == run / "config-1.yaml"
    assert manifest.write_manifest(third, run) == run / "config-2.yaml"
    kept = [load_config(run / name) for name in ("config-1.yaml", "config-2.yaml", "config.yaml")]
    assert kept == [first, second, third]
    assert sorted(path.name for path in run.iterdir()) == [
        "config-1.yaml",
        "config-2.yaml",
        "config.yaml",
        "manifest.json",
    ]


def test_a_config_that_cannot_be_read_is_kept_as_it_is(tmp_path: Path):
    config = config_in(tmp_path)
    config.directory.mkdir()
    (config.directory / "config.yaml").write_text("name: [")
    assert manifest.write_manifest(config, config.directory) == config.directory / "config-1.yaml"
    assert (config.directory / "config-1.yaml").read_text() == "name: ["
    assert load_config(config.directory / "config.yaml") == config


def test_version_and_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifest, "_version", lambda package: "1.2.3")
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert manifest.describe_version(checkout) == f"sluice 1.2.3 ({commit})"
    (checkout / "a.py").write_text("a = 2\n")
    assert manifest.describe_version(checkout) == f"sluice 1.2.3 ({commit}, changed)"


def test_an_environment_in_somebodys_repository_is_no_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(manifest, "_version", lambda package: "1.2.3")
    (checkout / ".gitignore").write_text("venv\n")
    (checkout / "venv").mkdir()
    (checkout / "venv" / "b.py").touch()
    assert manifest.git_state(checkout / "venv") is None
    assert manifest.describe_version(checkout / "venv") == "sluice 1.2.3"
