"""`sluice fit-ranker`: train the built-in ranker ensemble on the logged interactions and judge it on
validation.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.files import sha256_of, write_atomically
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.stages.staging import build_once

_QUALITY = "quality.json"


def run_ranker_fit(config: RunConfig, progress: Callable[[int, int, dict[str, float]], None]) -> Path:
    """Leave the ranker and its `quality.json` at `<run>/ranker`; a user's own ranker needs no fitting."""
    from sluice.learner.ranker.fit import fit_ranker

    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    # What changes nothing is no reason to fit again: `until` without a fresh part, a stack of one model.
    ignored = set() if dataset.prompt_part == "fresh" else {"until"}
    if config.ranker.parts == ("sequence",):
        ignored |= {"sequence", "ease", "itemknn", "stack_share"}
    inputs = {
        "seed": config.seed,
        "data": sha256_of(paths.data / "manifest.json"),
        "ranker": config.ranker.model_dump(mode="json", exclude=ignored),
    }

    def build(directory: Path) -> None:
        if config.ranker.use != "builtin":
            return
        quality = fit_ranker(dataset, config.ranker, config.seed, directory, progress)
        write_atomically(directory / _QUALITY, json.dumps(quality, indent=1))

    build_once(paths.ranker, inputs, build)
    return paths.ranker


def read_quality(paths: RunPaths) -> dict[str, Any] | None:
    """What `run` found of the ranker on validation; None for a ranker of the user's own."""
    path = paths.ranker / _QUALITY
    return json.loads(path.read_text()) if path.is_file() else None
