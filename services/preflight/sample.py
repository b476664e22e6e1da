"""A small data set out of the first rows of a log, for a ranker that is tried before anything is prepared."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sluice.catalog.data.cleaning import LogCleaner, Rejections, judge_ids
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.items import read_user_attributes
from sluice.catalog.data.schema import EXPOSURE
from sluice.catalog.data.settings import (
    CatalogueColumns,
    DataSettings,
    InteractionColumns,
    TableSource,
    UserColumns,
)
from sluice.catalog.data.sources import LogSource, open_source
from sluice.catalog.data.split_settings import LeaveLastTwoOut
from sluice.learner.ranker.trial import Questions
from sluice.services.stages.prepare import prepare_data

_ROWS = 50_000  # of the log that are looked at
_USERS = 40  # those with the longest histories there
_LEAST = 3  # interactions of a user, for one of each part
_CANDIDATES = 16
_CODES = 64  # of each of the two levels below the last
_OPTIONAL = ("rating", "click", "dwell_seconds", "exposed_by", *EXPOSURE.names)


def sample_dataset(settings: DataSettings, directory: Path) -> Dataset:
    """Prepare the users with the longest histories of the log's first rows, and the items that they have.

    Where the source has a table of users, those who have attributes there come before the others.

    The semantic IDs number the items, and the split is `leave_last_two_out` whatever the settings say.

    Raises:
        DataError: the source cannot be read, or its first rows hold no user with enough interactions.
    """
    source = open_source(settings.source)
    rows = _first_rows(source, settings)
    counts = pc.value_counts(rows.column("user_id")).to_pylist()
    enough = [count for count in counts if count["counts"] >= _LEAST]
    known = read_user_attributes(source, Rejections("users")) or {}
    # A ranker may read what is known of users, so those of whom something is known go first.
    enough.sort(key=lambda count: (not known.get(count["values"]), -count["counts"], count["values"]))
    chosen = pa.array([count["values"] for count in enough[:_USERS]], pa.string())
    rows = rows.filter(pc.is_in(rows.column("user_id"), value_set=chosen))
    pq.write_table(rows, directory / "log.parquet")
    present = {name: name for name in _OPTIONAL if rows.column(name).null_count < len(rows)}
    if "propensity" not in present:  # a place alone says nothing
        present.pop("slate_position", None)
    catalogue, columns = _catalogue(source, pc.unique(rows.column("item_id")), directory / "items.parquet")
    sampled = settings.model_copy(
        update={
            "source": TableSource(
                interactions=(str(directory / "log.parquet"),),
                unclicked=getattr(settings.source, "unclicked", "impression"),
                timestamp_unit="none",  # they have been judged already
                columns=InteractionColumns(**present),
                catalogue=catalogue,
                catalogue_columns=columns,
                users=getattr(settings.source, "users", None),
                user_columns=getattr(settings.source, "user_columns", UserColumns()),
            ),
            "split": LeaveLastTwoOut(),
            "min_interactions": _LEAST,
            "max_bad_share": 1.0,
            "reward": settings.reward if settings.reward in present else "auto",
        }
    )
    return Dataset.open(prepare_data(sampled, directory / "data").directory)


def draw_questions(dataset: Dataset) -> Questions:
    """Three prompts of a data set, of its shortest history, a middling and its longest, each with the item
    that came next and others beside it.
    """
    examples = dataset.examples(dataset.prompt_part)
    order = np.argsort(examples.positions, kind="stable")
    chosen = order[[0, len(order) // 2, -1]]
    random = np.random.default_rng(0)
    width = min(_CANDIDATES, dataset.items)
    candidates = np.full((len(chosen), width), -1, dtype=np.int32)
    histories = []
    for row, example in enumerate(chosen):
        user, position = int(examples.users[example]), int(examples.positions[example])
        target = dataset.target(user, position)
        others = random.permutation(np.setdiff1d(np.arange(dataset.items, dtype=np.int32), [target]))
        # Rows of a batch end with padding where others are longer.
        filled = max(2, width - row * (width // 4))
        candidates[row, :filled] = np.append(target, others[: filled - 1])
        histories.append(np.array(dataset.history(user, position, dataset.settings.max_history)))
    users = examples.users[chosen]
    return Questions(histories=histories, candidates=candidates, later_item=dataset.items, users=users)


def _first_rows(source: LogSource, settings: DataSettings) -> pa.Table:
    cleaner = LogCleaner.of(settings, Rejections("interactions"), None)
    batches, count = [], 0
    for batch in source.batches():
        batches.append(cleaner.clean(batch))
        count += batches[-1].num_rows
        if count >= _ROWS:
            break
    return pa.Table.from_batches(batches)


def _catalogue(source: LogSource, ids: pa.Array, path: Path) -> tuple[str, CatalogueColumns]:
    """The rows of the catalogue that belong to these items, or the ids alone, as a file.

    It has codes of its own, so that no vectors need to be computed.
    """
    parts = [pa.table({"item_id": ids})] if source.catalogue is None else []
    for batch in source.catalogue_batches():
        item_ids, _ = judge_ids(batch.columns["item_id"])
        columns = {name.removeprefix("attribute:"): values for name, values in batch.columns.items()}
        parts.append(pa.table(columns | {"item_id": item_ids}).filter(pc.is_in(item_ids, value_set=ids)))
    table = pa.concat_tables(parts, promote_options="permissive")
    codes = [[row // _CODES**2, row // _CODES % _CODES, row % _CODES] for row in range(len(table))]
    table = table.drop_columns(["codes"] if "codes" in table.column_names else [])
    pq.write_table(table.append_column("codes", pa.array(codes, pa.list_(pa.int32()))), path)
    named = {name: name for name in ("title", "embedding") if name in source.catalogue_columns}
    return str(path), CatalogueColumns(**named, codes="codes", attributes=tuple(source.attribute_columns))
