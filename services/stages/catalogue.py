"""`sluice catalogue push`: add items to the catalogue of a run, or retire items, while it goes on."""

from pathlib import Path

from sluice.catalog.data.changes import ChangingCatalogue, read_item_rows
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RunError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import load_policy
from sluice.services.config_resume import read_record
from sluice.services.paths import RunPaths


def push_change(run_directory: Path, add: Path | None, retire: Path | None) -> Vocabulary:
    """Write the next version into the run's directory, from where the run takes it up; returns it.

    Raises:
        RunError: there is no run with its data and its policy, or it is deterministic.
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
    vocabulary = Vocabulary.of(dataset.codes, load_policy(paths.policy).layout)
    catalogue = ChangingCatalogue(lambda: dataset.item_ids, vocabulary, paths.catalogue)
    return catalogue.push(
        read_item_rows(add, codes=True) if add else [], read_item_rows(retire, codes=False) if retire else []
    )
