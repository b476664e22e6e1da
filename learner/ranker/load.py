"""Loading the ranker that a config names: the built-in one or a user's class."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.contract import Ranker
from sluice.learner.ranker.settings import RankerSettings

_WITHOUT_USERS = "without_users"  # argument of a user's class


def load_ranker(
    settings: RankerSettings,
    directory: str | Path,
    dataset: Dataset,
    without_users: np.ndarray | None = None,
) -> Ranker:
    """The ranker that the settings name.

    That is the built-in one from `directory`, or the user's `module:Class`, constructed as
    `Class(dataset, **options)`; with `without_users` too where these rows of users are given.

    Raises:
        RankerError: it cannot be imported or constructed, or lacks `score` or `version`.
    """
    if settings.use == "builtin":
        from sluice.learner.ranker.model import EnsembleRanker
        from sluice.learner.ranker.stack import StackedRanker

        kind = EnsembleRanker if settings.parts == ("sequence",) else StackedRanker
        return kind.load(directory, dataset)
    ranker_class, options = _ranker_class(settings.use), dict[str, Any](settings.options)
    if without_users is not None:
        options[_WITHOUT_USERS] = without_users
    try:
        ranker: Ranker = ranker_class(dataset, **options)
    except Exception as error:
        raise RankerError(
            f"ranker.use {settings.use!r} failed to start with options {settings.options}: {_reason(error)}"
        ) from error
    for name in ("score", "version"):
        if not hasattr(ranker, name):
            raise RankerError(
                f"ranker.use {settings.use!r} has no attribute {name!r}; a ranker needs score(histories, "
                "candidates) and version"
            )
    return ranker


def can_leave_users_out(settings: RankerSettings) -> bool:
    """Whether the user's own class takes the argument `without_users`: it can be fitted without some.

    Raises:
        RankerError: it cannot be imported.
    """
    return _WITHOUT_USERS in inspect.signature(_ranker_class(settings.use)).parameters


def _ranker_class(use: str) -> Any:
    """The user's own class."""
    module_name, colon, class_name = use.partition(":")
    if not colon or not module_name or not class_name:
        raise RankerError(f"ranker.use is {use!r}: write it as package.module:Class, or as builtin")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # the module is the user's: importing it may raise anything
        raise RankerError(
            f"ranker.use {use!r} cannot be imported: {_reason(error)}; the module must be "
            "importable on the nodes, for example from the job's working directory, of which Ray leaves out "
            "what .gitignore names"
        ) from error


def _reason(error: Exception) -> str:
    """A missing module or name speaks for itself; anything else needs its class."""
    plain = isinstance(error, ImportError | AttributeError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def open_ranker(
    settings: RankerSettings, directory: str | Path, dataset_factory: Callable[[], Dataset]
) -> Ranker:
    """`load_ranker` for a process that has yet to open the data set."""
    return load_ranker(settings, directory, dataset_factory())
