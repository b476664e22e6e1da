"""What Ray ships of a checkout as a job's working directory: links under `sluice/` as files behind them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from tests.checkout import copy_checkout

pytestmark = pytest.mark.ray


def test_a_working_directory_that_was_shipped_is_one_that_runs(tmp_path: Path):
    checkout = copy_checkout(tmp_path / "checkout")
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    shipped = tmp_path / "shipped"
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        package.extractall(shipped)
    assert (shipped / "sluice" / "learner" / "gate" / "gate.py").read_bytes() == (
        checkout / "learner" / "gate" / "gate.py"
    ).read_bytes()
    script = "import sluice.services.config as config; print(config.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shipped, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(shipped / "sluice" / "services" / "config.py")
