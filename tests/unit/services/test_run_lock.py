"""The lock of a run directory."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sluice.catalog.errors import RunError
from sluice.services import run_lock
from sluice.services.run_lock import LOCK, check_idle, hold_run

ROOT = Path(__file__).parents[3]
HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom sluice.services.run_lock import hold_run\n"
    "with hold_run(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`, as a job that Ray started."""
    job = json.dumps({"metadata": {"job_submission_id": "raysubmit_7"}})
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": job},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_that_goes_on_is_named(tmp_path, holder):
    for attempt in (lambda: check_idle(tmp_path), lambda: hold_run(tmp_path).__enter__()):
        with pytest.raises(RunError, match=rf"going on \(job raysubmit_7, process {holder.pid} on"):
            attempt()


def test_the_lock_ends_with_its_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    check_idle(tmp_path)
    with hold_run(tmp_path):
        pass


def test_it_is_free_again_after_the_block(tmp_path):
    held, refused = hold_run(tmp_path / "new"), pytest.raises(RunError, match=rf"process {os.getpid()} on")
    with held, refused:
        check_idle(tmp_path / "new")
    check_idle(tmp_path / "new")
    assert (tmp_path / "new" / LOCK).is_file()


def test_where_there_is_no_run_nothing_is_made(tmp_path):
    check_idle(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_written_its_name_yet(tmp_path):
    with (tmp_path / LOCK).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process has just begun"):
            check_idle(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), hold_run(tmp_path):
        pass
    monkeypatch.setattr(
        run_lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
    )
    with pytest.raises(OSError, match="broken"):
        check_idle(tmp_path)
