"""Where a run writes: whether it may, whether there is room, and whether the names are short enough."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sluice.catalog.errors import DataError, PolicyError
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.preflight.base_policy import weight_files
from sluice.services.preflight.finding import Finding
from sluice.services.stages.staging import check_replaceable

LONGEST_NAME = 255  # bytes of a file's name on Linux
_ASIDE = len("..new-12345678")  # what `sluice.catalog.files` puts around a name
LONGEST_SOCKET = 107  # bytes of a Unix socket's path
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_GIB = 2**30


def check_output(config: RunConfig, log_bytes: int) -> Iterator[Finding]:
    """Whether the run directory can be made, holds nothing foreign and has room for what is written.

    `log_bytes` is the size of the log's files.
    """
    paths = RunPaths.of(config)
    longest = LONGEST_NAME - _ASIDE
    long = [part for part in paths.root.parts if len(part.encode()) > longest]
    if long:
        yield Finding(
            field="name" if long[-1] == paths.root.name else "output",
            value=f"{long[-1][:40]}... has {len(long[-1].encode())} bytes",
            bound=f"{longest} bytes for the name of a directory, such as the run's",
            remedy="give a shorter one",
        )
        return
    place = _nearest(paths.root)
    refused = _refusal(place)
    if refused is not None:
        yield Finding(
            field="output",
            value=f"{paths.root}: {refused}",
            bound="a directory that can be written",
            remedy="give another output, or the rights to write there",
        )
        return
    try:
        check_replaceable(paths.data)
    except DataError as error:
        yield Finding.of_error("output", error)
    free, needed = shutil.disk_usage(place).free, needed_bytes(config, log_bytes)
    if free < needed:
        yield Finding(
            field="output",
            value=f"{place} has {free / _GIB:.1f} GiB free",
            bound=f"about {needed / _GIB:.1f} GiB for data, policies and checkpoints",
            remedy="make room, give another output, or lower learner.keep_last",
        )


def check_sockets(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the sockets of a Ray head that is started here have short enough paths."""
    names = [name for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)]
    place = environment[names[0]] if names else "/tmp"
    length = len((place + _SOCKET).encode())
    if length > LONGEST_SOCKET:
        yield Finding(
            field=names[0] if names else "RAY_TMPDIR",
            value=f"{place}, below which Ray's sockets have paths of {length} bytes",
            bound=f"{LONGEST_SOCKET} bytes",
            remedy="set RAY_TMPDIR to a shorter directory, such as /tmp",
        )


def needed_bytes(config: RunConfig, log_bytes: int) -> int:
    """A low guess of what a run writes: the data, six policies, and checkpoints with two moments of AdamW."""
    policy = _policy_bytes(config)
    checkpoints = 2 * (config.learner.keep_last + 1)  # of the training and of its control
    return log_bytes + 6 * policy + checkpoints * 3 * policy


def _policy_bytes(config: RunConfig) -> int:
    settings = config.policy
    if settings.base is not None:
        try:
            files = weight_files(Path(settings.base).expanduser())
        except PolicyError:  # told by `check_base`
            files = []
        return sum(file.stat().st_size for file in files if file.is_file())
    width = settings.hidden_size
    layer = 4 * width * width + 3 * width * settings.feed_forward_size
    tokens = sum(config.data.semantic_ids.level_sizes or ())
    return 4 * (settings.layers * layer + tokens * width)


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _refusal(place: Path) -> str | None:
    """Why nothing can be written in a directory; None when something can."""
    if not place.is_dir():
        return f"{place} is a file"
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written ({os.strerror(error.errno) if error.errno else error})"
