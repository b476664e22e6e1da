"""A run directory that meets other data than before, or what an earlier training left.

Whether an arm that has been trained is used again, `sluice.services.run.arms` says.
"""

import shutil

from sluice.catalog.data.dataset import FORMAT, read_manifest
from sluice.catalog.data.sources import open_source
from sluice.catalog.errors import RunError
from sluice.services.config import Resume, RunConfig
from sluice.services.paths import RunPaths


def check_checkpoints(paths: RunPaths, resume: Resume) -> None:
    """Whether the run directory holds what a start with this `resume` needs.

    Raises:
        RunError: there is no checkpoint to resume from, or there is one that is not to be resumed.
    """
    has_best = paths.arm("train").best_checkpoint.exists()
    has_begun = has_best or (paths.checkpoints / "train").exists()
    if resume and not has_begun:
        raise RunError(
            f"nothing to resume: {paths.root} holds no checkpoint of a post-training; leave out --resume"
        )
    if resume == "best" and not has_best:
        raise RunError(f"{paths.root} holds no best checkpoint yet: give --resume to go on from its last one")
    if has_begun and not resume:
        raise RunError(
            f"{paths.root} already holds a post-training: give --resume to go on with it, or another name, "
            f"seed or output to start a new one, or remove its checkpoints directory to train again from the "
            "same start"
        )


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
    for place in (paths.best, paths.last, paths.root / "tensorboard" / paths.arm("train").metrics.stem):
        shutil.rmtree(place, ignore_errors=True)
