"""What of an earlier start in a run directory is used again, and what is not: an arm that was trained with
other settings, data that have changed, the policies of a training that is begun anew.
"""

import json
import shutil
from typing import Any

from sluice.catalog.data.dataset import FORMAT, read_manifest
from sluice.catalog.data.sources import open_source
from sluice.catalog.errors import RunError
from sluice.catalog.files import write_atomically
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.stages.staging import stage_inputs

_STAMP = "inputs.json"
# Settings of the learner that do not change what the control learns.
_NO_MATTER = {"reference", "keep_last", "rollout_timeout_s"}


def check_same_data(config: RunConfig, paths: RunPaths) -> None:
    """Before a run is resumed: whether log and catalogue are the files that its data were prepared from.

    Raises:
        RunError: they have changed, so that the checkpoints would go on with other items or histories.
    """
    manifest = read_manifest(paths.data)
    if manifest is None:
        return
    if manifest.get("format") != FORMAT:
        raise RunError(
            f"the data of this run were prepared in format {manifest.get('format')}, and this release has "
            f"format {FORMAT}: resume it with the release that it was made with, or start a new run"
        )
    before = {entry["sha256"]: entry["path"] for entry in manifest.get("source", [])}
    now = {entry["sha256"]: entry["path"] for entry in open_source(config.data.source).fingerprint()}
    changed = [path for digest, path in now.items() if digest not in before]
    changed += [path for digest, path in before.items() if digest not in now and path not in changed]
    if changed:
        raise RunError(
            f"the data of this run have changed since it began ({changed[0]}): resume it with the data that "
            "it was made with, or start a new run with another name, seed or output"
        )


def discard_training(paths: RunPaths) -> None:
    """Before a post-training begins anew: the policies and curves of the one before go."""
    for place in (paths.best, paths.last, paths.root / "tensorboard" / paths.metrics("train").stem):
        shutil.rmtree(place, ignore_errors=True)


def discard_control(paths: RunPaths) -> None:
    """Before the control is trained anew: its policies and curves go."""
    for place in (
        paths.control,
        paths.control_last,
        paths.root / "tensorboard" / paths.metrics("control").stem,
    ):
        shutil.rmtree(place, ignore_errors=True)


def is_control_current(config: RunConfig, paths: RunPaths) -> bool:
    """Whether the control that is there was trained to its end from this start with these settings."""
    try:
        return bool(json.loads((paths.control_last / _STAMP).read_text()) == _control_inputs(config, paths))
    except (OSError, ValueError):
        return False


def stamp_control(config: RunConfig, paths: RunPaths) -> None:
    """Note what the control, which has just been trained, was trained with."""
    inputs = _control_inputs(config, paths)
    write_atomically(paths.control_last / _STAMP, json.dumps(inputs, indent=1, sort_keys=True))


def _control_inputs(config: RunConfig, paths: RunPaths) -> dict[str, Any]:
    """The start, which says the data, the seed and how policies are evaluated; and the learner."""
    return {
        "start": stage_inputs(paths.policy),
        "learner": config.learner.model_dump(mode="json", exclude=_NO_MATTER),
    }
