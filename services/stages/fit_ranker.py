"""`sluice fit-ranker`: train the built-in ranker ensemble on the logged interactions and judge it on
validation; where the gate asks for trust, fit it also without each half of the users.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.files import sha256_of, write_atomically
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.stages.staging import build_once, stage_inputs

_QUALITY = "quality.json"


def run_ranker_fit(
    config: RunConfig, progress: Callable[[int, int, dict[str, float]], None], *, keep: bool = False
) -> Path:
    """Leave the ranker and its `quality.json` at `<run>/ranker`; a user's own ranker needs no fitting.

    With `keep`, a ranker that is there stays as it is, whatever it was fitted with.

    Its halves are a directory of their own, so that a gate that asks for trust is no reason to fit it again.
    """
    from sluice.learner.ranker.fit import fit_ranker
    from sluice.learner.trust.fit import fit_halves
    from sluice.learner.trust.halves import HALVES

    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    # What changes nothing is no reason to fit again: `until` without a fresh part, a stack of one model.
    ignored = set() if dataset.prompt_part == "fresh" else {"until"}
    ignored |= {
        name
        for name, usual in (("users", "all"), ("scores", "next_item"))
        if getattr(config.ranker, name) == usual
    }
    if config.ranker.parts == ("sequence",):
        ignored |= {"sequence", "ease", "itemknn", "stack_share"}
    inputs = {
        "seed": config.seed,
        "data": sha256_of(paths.data / "manifest.json"),
        "ranker": config.ranker.model_dump(mode="json", exclude=ignored),
    }

    stamp = stage_inputs(paths.ranker) if keep else None
    if stamp is not None:  # the halves are to be those of this ranker
        inputs = json.loads(stamp)

    with_halves = config.trust is not None and config.ranker.use == "builtin"

    def report(done: int, total: int, fields: dict[str, float]) -> None:
        progress(done, total * (1 + HALVES) if with_halves else total, fields)

    def report_halves(done: int, total: int, fields: dict[str, float]) -> None:
        progress(total // HALVES + done, total // HALVES * (1 + HALVES), fields)

    def build(directory: Path) -> None:
        if config.ranker.use != "builtin":
            return
        quality = fit_ranker(dataset, config.ranker, config.seed, directory, report)
        write_atomically(directory / _QUALITY, json.dumps(quality, indent=1))

    def build_halves(directory: Path) -> None:
        fit_halves(dataset, config.ranker, config.seed, directory, report_halves)

    build_once(paths.ranker, inputs, build)
    if with_halves:
        build_once(paths.ranker_halves, inputs, build_halves)
    return paths.ranker


def read_quality(paths: RunPaths) -> dict[str, Any] | None:
    """What `run` found of the ranker on validation; None for a ranker of the user's own."""
    path = paths.ranker / _QUALITY
    return json.loads(path.read_text()) if path.is_file() else None
