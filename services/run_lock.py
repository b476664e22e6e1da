"""The lock of a run directory: one process at a time works there.

It is held as long as that process lives, so none is left behind by one that died. A file system without such
locks is said to have none, and the run goes on.
"""

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sluice.catalog.errors import RunError

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold_run(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which is made if it is not there.

    Raises:
        RunError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+", encoding="utf-8") as file:
        _take(file, directory)
        file.truncate(0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "job": _job()}
        file.write(json.dumps(holder))
        file.flush()
        yield


def _job() -> str | None:
    """The id of the Ray job that this process is, as `ray job stop` takes it."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job: str | None = config.get("metadata", {}).get("job_submission_id")
    return job


def check_idle(directory: Path) -> None:
    """Raises RunError when a process works in the run directory now."""
    if (directory / LOCK).is_file():
        with (directory / LOCK).open("a+", encoding="utf-8") as file:
            _take(file, directory)


def _take(file: TextIO, directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"the run in {directory} is going on ({_holder(file)}): wait for its end or stop it, or give "
            "another name, seed or output"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {directory} has no locks: see to it that no other run works there",
            stacklevel=3,
        )


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:  # it is only just writing that down
        return "another process has just begun"
    job = f"job {holder['job']}, " if holder["job"] else ""
    return f"{job}process {holder['pid']} on {holder['host']}"
