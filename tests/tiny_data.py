"""A small prepared data set, made by the real `prepare` from a written-out log."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import (
    CatalogueColumns,
    DataSettings,
    InteractionColumns,
    SemanticIdSettings,
    TableSource,
)
from sluice.services.stages.prepare import prepare_data

USERS, ITEMS, LENGTH = 24, 20, 9


def tiny_dataset(
    directory: Path,
    *,
    exclude_seen: bool = True,
    max_history: int = 6,
    outcomes: bool = False,
    reward: str = "auto",
) -> Dataset:
    """User u consumes items u, u+1, ... u+8 (mod 20), one a second, and rates item i with 1 + i % 5.

    With `outcomes` the log also has a click where i is even, and a dwell time of 10 * (1 + i % 3) seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        (f"u{u:02d}", f"i{(u + step) % ITEMS:02d}", 100 * u + step)
        for u in range(USERS)
        for step in range(LENGTH)
    ]
    users, items, times = zip(*rows, strict=True)
    ratings = [1.0 + int(item[1:]) % 5 for item in items]
    clicks, seconds = (
        [int(item[1:]) % 2 == 0 for item in items],
        [10.0 * (1 + int(item[1:]) % 3) for item in items],
    )
    log, catalogue = directory / "log.parquet", directory / "catalogue.parquet"
    table = {
        "user_id": users,
        "item_id": items,
        "timestamp": times,
        "stars": ratings,
        "open": clicks,
        "s": seconds,
    }
    pq.write_table(pa.table(table), log)
    more = {"click": "open", "dwell_seconds": "s"} if outcomes else {}
    names = [f"i{item:02d}" for item in range(ITEMS)]
    pq.write_table(pa.table({"item_id": names, "kind": [f"k{item % 3}" for item in range(ITEMS)]}), catalogue)
    settings = DataSettings(
        name="tiny",
        source=TableSource(
            interactions=(str(log),),
            columns=InteractionColumns(rating="stars", **more),
            unclicked="interaction",
            catalogue=str(catalogue),
            catalogue_columns=CatalogueColumns(attributes=("kind",)),
        ),
        semantic_ids=SemanticIdSettings(level_sizes=(4, 4), vector_dims=8, window=2),
        exclude_seen=exclude_seen,
        reward=reward,
        max_history=max_history,
    )
    return Dataset.open(prepare_data(settings, directory / "data").directory)
