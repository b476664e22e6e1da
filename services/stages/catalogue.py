"""`sluice catalogue push`: add items to the catalogue of a run, or retire items, while it goes on.

A change is for one catalogue: that of the data which the run has then. Beside the changes stands which.
"""

import os
from pathlib import Path

from sluice.catalog.data.changes import ChangingCatalogue, read_item_rows
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RunError
from sluice.catalog.files import write_atomically
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import load_policy
from sluice.services.config_resume import read_record
from sluice.services.paths import RunPaths

_MADE_FOR = "made-for"  # the fingerprint of the catalogue that the changes beside it change


def push_change(run_directory: Path, add: Path | None, retire: Path | None) -> Vocabulary:
    """Write the next version into the run's directory, from where the run takes it up; returns it.

    Raises:
        RunError: there is no run with its data and its policy, it has changes for other data, or it is
            deterministic.
        DataError: a file cannot be read, or what it says does not fit the catalogue; nothing is written then.
    """
    paths = RunPaths(run_directory.resolve())
    if not paths.policy.is_dir():
        raise RunError(f"{run_directory} has no policy in it: give the run directory of a run that has begun")
    record = read_record(paths.root)
    if record is not None and record.deterministic:
        raise RunError(
            f"the run in {run_directory} is deterministic, and a change of its catalogue would come at a "
            "moment that no other run of it has: leave out deterministic, or start a new run with the new "
            "catalogue"
        )
    dataset = Dataset.open(paths.data)
    own, other = fingerprint_catalogue(dataset.item_ids, dataset.codes), _made_for(paths)
    if other not in (None, own):
        raise RunError(
            f"{paths.catalogue} has changes for other data than this run has now: start the run, which sets "
            "them aside, and push again"
        )
    vocabulary = Vocabulary.of(dataset.codes, load_policy(paths.policy, own).layout)
    catalogue = ChangingCatalogue(lambda: dataset.item_ids, vocabulary, paths.catalogue)
    changed = catalogue.push(
        read_item_rows(add, codes=True) if add else [], read_item_rows(retire, codes=False) if retire else []
    )
    write_atomically(paths.catalogue / _MADE_FOR, own)
    return changed


def set_aside_foreign(paths: RunPaths, *, resumed: bool) -> Path | None:
    """Before a run begins or goes on: move changes that were made for another catalogue than that of its data
    to `catalogue-<n>`; returns where they are then.

    Changes that an earlier release took do not say what they are for. They stay in a run that is resumed.
    """
    if not paths.catalogue.is_dir():
        return None
    dataset, made_for = Dataset.open(paths.data), _made_for(paths)
    if made_for == fingerprint_catalogue(dataset.item_ids, dataset.codes) or (made_for is None and resumed):
        return None
    number = 1
    while (aside := paths.root / f"{paths.catalogue.name}-{number}").exists():
        number += 1
    os.rename(paths.catalogue, aside)
    return aside


def _made_for(paths: RunPaths) -> str | None:
    stamp = paths.catalogue / _MADE_FOR
    return stamp.read_text() if stamp.is_file() else None
