"""A run directory that has been run in before: whether it can be started or gone on with. Imports no torch.

Whether an arm that has been trained is used again, `sluice.services.run.arms` says. What is in the directory
is compared with what the run began with by `sluice.services.run.inputs`.
"""

from sluice.catalog.data.dataset import FORMAT, read_manifest
from sluice.catalog.data.sources import open_source
from sluice.catalog.errors import RunError
from sluice.catalog.files import settle_directory, was_moved_away
from sluice.learner.training.kept import list_checkpoints
from sluice.services.config import Resume, RunConfig
from sluice.services.config_resume import check_resume
from sluice.services.paths import RunPaths


def has_begun(paths: RunPaths) -> bool:
    """Whether the run has a checkpoint of its post-training."""
    arm = paths.arm("train")
    return bool(list_checkpoints(arm.kept, arm.best_checkpoint)) or was_moved_away(arm.best_checkpoint)


def is_forking(paths: RunPaths, resume: Resume, fork: str | None) -> bool:
    """Whether a start with `--fork` begins a fork: with `--resume auto` only as long as it has not begun."""
    return fork is not None and not (resume == "auto" and has_begun(paths))


def settle(paths: RunPaths) -> None:
    """Put back what a process that died was about to replace. Only for who holds the lock of the run."""
    for directory in (*paths.built, paths.arm("train").best_checkpoint):
        settle_directory(directory)


def check_checkpoints(paths: RunPaths, resume: Resume) -> Resume:
    """Whether the run directory holds what a start with this `resume` needs; returns what `auto` comes to.

    Raises:
        RunError: there is no checkpoint to resume from, or there is one that is not to be resumed.
    """
    begun = has_begun(paths)
    if resume == "auto":
        return "last" if begun else None
    if resume and not begun:
        raise RunError(
            f"nothing to resume: {paths.root} holds no checkpoint of a post-training; leave out --resume, or "
            "give --resume auto to go on only where there is one"
        )
    best = paths.arm("train").best_checkpoint
    if resume == "best" and not (best.exists() or was_moved_away(best)):
        raise RunError(f"{paths.root} holds no best checkpoint yet: give --resume to go on from its last one")
    if begun and not resume:
        raise RunError(
            f"{paths.root} already holds a post-training: give --resume to go on with it, or another name, "
            f"seed or output to start a new one, or remove its checkpoints directory to train again from the "
            "same start"
        )
    return resume


def check_kept(config: RunConfig, paths: RunPaths) -> bool:
    """Before a stage of a run alone: whether the run has begun, so that what is there stays as it is.

    Raises:
        ConfigError: it has begun, with a config that this one does not fit.
        RunError: it has begun, with other data.
    """
    begun = has_begun(paths)
    if begun:
        check_resume(config, paths.root)
        check_same_data(config, paths)
    return begun


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
