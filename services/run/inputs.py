"""What a run is made from: data, catalogue, start, ranker, settings. It keeps the fingerprint of each.

They stand in `manifest.json`, from the moment at which all of them are there. A run that goes on has what it
began with, or is refused with the name of what is another. Nothing that checkpoints rest on is built again.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from sluice.catalog.data.dataset import Dataset, read_manifest
from sluice.catalog.errors import RunError
from sluice.catalog.files import digest_files, sha256_of
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.services.config import RunConfig
from sluice.services.config_resume import RECORD, fixed_settings
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress
from sluice.services.run.manifest import read_fingerprints
from sluice.services.stages.data_warnings import list_warnings
from sluice.services.stages.prepare import Prepared, prepare_data
from sluice.services.stages.staging import find_data_damage, find_stage_damage

_WHAT = {
    "data": "data/",
    "codes": "the catalogue of data/ (items or their semantic IDs)",
    "policy": "policy/, the start",
    "ranker": "the ranker",
    "settings": "the settings",
}


def prepare_run(config: RunConfig, paths: RunPaths, progress: Progress, *, keep: bool) -> Prepared:
    """The run's data. With `keep`, data that are there stay as they are, wherever the log lies now."""
    manifest = read_manifest(paths.data) if keep else None
    if manifest is None:
        return prepare_data(config.data, paths.data, progress)
    return Prepared(directory=paths.data, reused=True, manifest=manifest, warnings=list_warnings(manifest))


def take_fingerprints(config: RunConfig, paths: RunPaths) -> dict[str, str]:
    """The fingerprint of each thing that the run is made from and that is there."""
    taken = {"settings": _sha256(fixed_settings(config)), "ranker": _ranker(config, paths)}
    manifest = read_manifest(paths.data)
    if manifest is not None:
        dataset = Dataset.open(paths.data)
        taken["data"] = _sha256(manifest.get("files", {}))
        taken["codes"] = fingerprint_catalogue(dataset.item_ids, dataset.codes)
    if paths.policy.is_dir():
        taken["policy"] = _sha256(digest_files(paths.policy))
    return {name: taken[name] for name in _WHAT if taken.get(name)}


def check_unchanged(config: RunConfig, paths: RunPaths) -> None:
    """Before a run goes on: whether what is in its directory is what it began with.

    A run of an earlier release has no fingerprints. Of it only the sums of its data are compared.

    Raises:
        RunError: something has changed or is damaged; the message names it.
    """
    manifest = read_manifest(paths.data)
    damage = [
        None if manifest is None else _in("data", find_data_damage(paths.data, manifest)),
        *(_in(place.name, find_stage_damage(place)) for place in (paths.policy, paths.ranker)),
    ]
    changed = [text for text in damage if text]
    if not changed:
        recorded, now = read_fingerprints(paths.root), take_fingerprints(config, paths)
        if (paths.root / RECORD).exists():  # compared setting by setting
            now.pop("settings", None)
        changed = [
            f"{_WHAT[name]} has fingerprint {now[name][:16]}, and had {before[:16]}"
            for name, before in recorded.items()
            if name in now and now[name] != before
        ]
    if changed:
        raise RunError(
            f"{paths.root} is not what the run began with:\n"
            + "".join(f"  {text}\n" for text in changed)
            + "Put back what it was, or start a new run with another name, seed or output. --fork takes the "
            "policy of a checkpoint over into a run with another ranker or other settings."
        )


def _in(directory: str, damage: str | None) -> str | None:
    return None if damage is None else f"{directory}/{damage}"


def _ranker(config: RunConfig, paths: RunPaths) -> str:
    """Of the fitted ranker's files, or of the module that holds the user's own."""
    if config.ranker.use == "builtin":
        return _sha256(digest_files(paths.ranker)) if paths.ranker.is_dir() else ""
    module = config.ranker.use.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    file = Path(spec.origin) if spec is not None and spec.origin is not None else None
    return sha256_of(file) if file is not None and file.is_file() else ""


def _sha256(content: Mapping[str, object]) -> str:
    return sha256_of([json.dumps(content, sort_keys=True).encode()])
