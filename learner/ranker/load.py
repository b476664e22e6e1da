"""Loading the ranker that a config names: the built-in one or a user's class."""

import importlib
from collections.abc import Callable
from pathlib import Path

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.contract import Ranker
from sluice.learner.ranker.settings import RankerSettings


def load_ranker(settings: RankerSettings, directory: str | Path, dataset: Dataset) -> Ranker:
    """The ranker that the settings name.

    That is the built-in one from `directory`, or the user's `module:Class`, constructed as
    `Class(dataset, **options)`.

    Raises:
        RankerError: it cannot be imported or constructed, or lacks `score` or `version`.
    """
    if settings.use == "builtin":
        from sluice.learner.ranker.model import EnsembleRanker
        from sluice.learner.ranker.stack import StackedRanker

        kind = EnsembleRanker if settings.parts == ("sequence",) else StackedRanker
        return kind.load(directory, dataset)
    module_name, colon, class_name = settings.use.partition(":")
    if not colon or not module_name or not class_name:
        raise RankerError(f"ranker.use is {settings.use!r}: write it as package.module:Class, or as builtin")
    try:
        ranker_class = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # the module is the user's: importing it may raise anything
        raise RankerError(
            f"ranker.use {settings.use!r} cannot be imported: {_reason(error)}; the module must be "
            "importable on the nodes, for example from the job's working directory, of which Ray leaves out "
            "what .gitignore names"
        ) from error
    try:
        ranker: Ranker = ranker_class(dataset, **settings.options)
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


def _reason(error: Exception) -> str:
    """A missing module or name speaks for itself; anything else needs its class."""
    plain = isinstance(error, ImportError | AttributeError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def open_ranker(
    settings: RankerSettings, directory: str | Path, dataset_factory: Callable[[], Dataset]
) -> Ranker:
    """`load_ranker` for a process that has yet to open the data set."""
    return load_ranker(settings, directory, dataset_factory())
