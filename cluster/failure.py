"""What happens after a component failed: pure decisions, carried out by whoever watches the component.

error        -> is it worth another try?     `is_hopeless`
restarts     -> once more, after how long?   `decide_restart`
OSError      -> what is wrong with the disk  `explain_storage`
"""

import errno
import os
import re
from dataclasses import dataclass

from sluice.catalog.errors import ClusterError, HopelessError, RunError, SluiceError

# What the disk says that another try does not mend, and its remedy.
_STORAGE = {
    errno.ENOSPC: "the disk is full: make room there",
    errno.EDQUOT: "the quota of the disk is used up: make room there",
    errno.EROFS: "the file system is read-only: have it mounted for writing, or give another output",
    errno.EACCES: "this user may not write there: give it the rights, or give another output",
    errno.EPERM: "this user may not write there: give it the rights, or give another output",
    errno.ENOENT: "it is gone: see whether it was removed, or unmounted, while the run went on",
    errno.ENOTDIR: "a part of its path is a file: see whether it was replaced while the run went on",
}
# Libraries that write files by themselves (safetensors, pyarrow) name the errno in their text alone.
_ERRNO_IN_TEXT = re.compile(r"\[Errno (\d+)\]|\[errno (\d+)\]|\(os error (\d+)\)")
_PATH_IN_TEXT = re.compile(r"'(/[^']+)'")
_SHAPES = re.compile(
    r"size mismatch|shapes? .*cannot be|must match the size|mat1 and mat2|not implemented for"
)
_MAX_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Start the component again, or end the run."""

    restart: bool
    restarts: int  # of this component, this one included if `restart`
    message: str
    wait_s: float = 0.0  # before it is started again, so that what cannot start does not spin


def decide_restart(component: str, *, restarts: int, bound: int, setting: str, reason: str) -> Decision:
    """What to do about `component`, which failed with `reason` after `restarts` restarts.

    `setting` names the field that holds `bound`, for the message. The first restart is made at once, and the
    wait before each later one is twice as long, up to a minute.

    >>> decide_restart("rollout-0", restarts=2, bound=2, setting="cluster.max_actor_restarts", reason="gone")
    Decision(restart=False, restarts=2, message='rollout-0 failed after 2 restart(s), ..., wait_s=0.0)
    """
    if restarts < bound:
        return Decision(
            restart=True,
            restarts=restarts + 1,
            wait_s=0.0 if restarts == 0 else min(_MAX_WAIT_S, 2.0 ** (restarts - 1)),
            message=f"{component} failed and is started again ({restarts + 1} of at most {bound} times): "
            f"{reason}",
        )
    return Decision(
        restart=False,
        restarts=restarts,
        message=f"{component} failed after {restarts} restart(s), the most that {setting} = {bound} allows. "
        f"Last failure: {reason}. Remove its cause, or raise {setting}",
    )


def is_hopeless(error: BaseException, former: BaseException | None = None) -> bool:
    """Whether a component that failed with `error` would fail with it again, so that the run ends at once.

    A mistake in the input is hopeless, and so are what the disk refuses, a module that is not there and what
    Python's own exceptions tell of: the same code runs into them again. Of other errors nobody knows. They
    are worth another try, unless `former`, the error before it, was the same word for word. A death, a lost
    object or a wait that ran out is always worth one.

    >>> is_hopeless(ImportError("no module named nixl")), is_hopeless(ConnectionError("reset by peer"))
    (True, False)
    """
    if isinstance(error, SluiceError):
        return isinstance(error, HopelessError) or not isinstance(error, RunError | ClusterError)
    if explain_storage(error) is not None:
        return True
    if isinstance(error, OSError | MemoryError | EOFError):
        return False
    if type(error).__module__ == "builtins" and type(error) is not RuntimeError:
        return True
    if type(error).__module__.startswith("ray."):
        return False
    return bool(_SHAPES.search(str(error))) or (former is not None and describe(error) == describe(former))


def explain_storage(error: BaseException) -> str | None:
    """One sentence with path and remedy about an error of the disk; None when it is another error."""
    code = error.errno if isinstance(error, OSError) and error.errno is not None else _errno_in(str(error))
    if code not in _STORAGE:
        return None
    quoted = _PATH_IN_TEXT.search(str(error))
    name = getattr(error, "filename", None) or (quoted and quoted.group(1))
    place = f"{name}: " if name else ""
    return f"{place}{os.strerror(code)}: {_STORAGE[code]}"


def describe(error: BaseException) -> str:
    """An error in one line: a finished message as it is, another one by its class and first line."""
    if isinstance(error, SluiceError):
        return str(error)
    storage = explain_storage(error)
    if storage is not None:
        return storage
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"


def _errno_in(text: str) -> int | None:
    match = _ERRNO_IN_TEXT.search(text)
    return int(next(group for group in match.groups() if group)) if match else None
