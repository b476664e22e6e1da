"""One import name: what is installed is called `sluice`, and a checkout works as it is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkout import copy_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


def run(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_puts_sluice_alone_at_the_top(checkout: Path, tmp_path: Path):
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    run(checkout, "-m", "pip", "--disable-pip-version-check", "wheel", *options, ".")
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "sluice",
        f"{wheel.name[: -len('-py3-none-any.whl')]}.dist-info",
    }
    assert {"sluice/learner/gate/gate.py", "sluice/services/report/report.html.j2"} <= set(names)


def test_a_bare_checkout_works(checkout: Path):
    assert "name: quickstart" in run(checkout, "-m", "sluice", "config", "check", "configs/quickstart.yaml")
    script = "import sluice.services.config as config; print(config.__file__)"
    assert run(checkout, "-c", script).strip() == str(checkout / "sluice" / "services" / "config.py")


def test_the_exit_code_is_the_commands(checkout: Path):
    command = [sys.executable, "-m", "sluice", "config", "check", "configs/none.yaml"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "configs/none.yaml" in done.stderr
