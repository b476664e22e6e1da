"""The manifest of a run, and that the documentation of the settings is the one they generate."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

from sluice.services.config import load_config
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
    config = load_config(ROOT / "configs" / "ml100k.yaml", [f"output={tmp_path}"])
    manifest.write_manifest(config, config.directory)
    assert load_config(config.directory / "config.yaml") == config
    written = json.loads((config.directory / "manifest.json").read_text())
    assert re.fullmatch(r"3\.11\.\d+", written["python"])
    assert {"ray", "torch", "transformers"} <= written["packages"].keys()
    assert written["host"]["cores"] >= 1 and written["host"]["memory_gib"] > 0


def test_it_names_no_path_of_the_machine(tmp_path: Path):
    assert str(ROOT) not in json.dumps(manifest.describe_run(ROOT, {}))


def test_the_settings_page_is_current():
    spec = importlib.util.spec_from_file_location(
        "docs_configuration", ROOT / "docs" / "scripts" / "configuration.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "configuration.md").read_text() == module.render(), "run `make docs`"
