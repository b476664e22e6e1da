"""What `sluice train` does before anything is built: the check of everything, then the lock."""

import sys
import types
from pathlib import Path

import pytest

import sluice.services.run
from sluice.services.cli import main as cli
from sluice.services.preflight import show


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run directories in which a training began; the working directory holds a config, `t.yaml`."""
    (tmp_path / "t.yaml").write_text("name: t\n")
    monkeypatch.chdir(tmp_path)
    directories: list[Path] = []

    def run(config: object, resume: object) -> int:
        directories.append(config.directory)
        return cli.main(["train", "--config", "t.yaml"]) if len(directories) == 1 else 0

    fake = types.SimpleNamespace(run_training=run)
    monkeypatch.setitem(sys.modules, "sluice.services.run.train", fake)
    monkeypatch.setattr(sluice.services.run, "train", fake, raising=False)
    return directories


@pytest.mark.parametrize("code", [2, 3])
def test_a_run_with_something_wrong_is_not_begun(
    begun: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    monkeypatch.setattr(show, "check_and_show", lambda *_: code)
    assert cli.main(["train", "--config", "t.yaml"]) == code
    assert begun == [] and not (tmp_path / "runs").exists()


def test_one_process_at_a_time_works_in_a_run_directory(
    begun: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(show, "check_and_show", lambda *_: 0)
    assert cli.main(["train", "--config", "t.yaml"]) == 4
    assert begun == [tmp_path / "runs" / "t-seed0"] and "is going on" in capsys.readouterr().err
