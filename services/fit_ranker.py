"""`sluice fit-ranker`: train the built-in ranker ensemble on the logged interactions and judge it on validation."""

import json
from collections.abc import Callable
from pathlib import Path

from catalog.dataset import Dataset
from services.config import RunConfig
from services.paths import RunPaths
from services.stages import build_once, digest


def run(config: RunConfig, progress: Callable[[int, int, dict[str, float]], None]) -> Path:
    """Leave the ranker and its `quality.json` at `<run>/ranker`; a user's own ranker needs no fitting."""
    from learner.ranker_fit import fit_ranker

    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    inputs = {
        "seed": config.seed,
        "data": digest(paths.data / "manifest.json"),
        "ranker": config.ranker.model_dump(mode="json"),
    }

    def build(directory: Path) -> None:
        if config.ranker.use != "builtin":
            return
        quality = fit_ranker(dataset, config.ranker, config.seed, directory, progress)
        (directory / "quality.json").write_text(json.dumps(quality, indent=1))

    build_once(paths.ranker, inputs, build)
    return paths.ranker
