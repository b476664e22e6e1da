"""Which files of the working directory a job gets: Ray leaves out what we exclude and what git ignores."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

_QUIET = logging.getLogger(f"{__name__}.ray")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


def left_out(working_directory: Path, excludes: Sequence[str]) -> Callable[[Path], bool]:
    """Whether Ray leaves a file of the working directory out of what it ships.

    Ray's own functions say so, which are not public: what is said here is then what happens there.
    """
    from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

    rules = [
        _get_excludes(working_directory, list(excludes)),
        *get_excludes_from_ignore_files(working_directory, include_gitignore=True, logger=_QUIET),
    ]
    return lambda file: any(rule(file) for rule in rules)


def ranker_files(use: str, working_directory: Path) -> list[Path]:
    """The files of the working directory that `ranker.use` imports first; none when it lies elsewhere."""
    if ":" not in use:
        return []
    module = working_directory.joinpath(*use.partition(":")[0].split("."))
    return [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()]
