"""A small prepared data set, made by the real `prepare` from a written-out log."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.dataset import Dataset
from catalog.settings import CatalogueColumns, DataSettings, InteractionColumns, SemanticIdSettings, TableSource
from services.prepare import prepare

USERS, ITEMS, LENGTH = 24, 20, 9


def tiny_dataset(directory: Path, *, exclude_seen: bool = True, max_history: int = 6) -> Dataset:
    """User u consumes items u, u+1, ... u+8 (mod 20), one a second, and rates item i with 1 + i % 5."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [(f"u{u:02d}", f"i{(u + step) % ITEMS:02d}", 100 * u + step) for u in range(USERS) for step in range(LENGTH)]
    users, items, times = zip(*rows, strict=True)
    ratings = [1.0 + int(item[1:]) % 5 for item in items]
    log, catalogue = directory / "log.parquet", directory / "catalogue.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times, "stars": ratings}), log)
    names = [f"i{item:02d}" for item in range(ITEMS)]
    pq.write_table(pa.table({"item_id": names, "kind": [f"k{item % 3}" for item in range(ITEMS)]}), catalogue)
    settings = DataSettings(
        name="tiny",
        source=TableSource(
            interactions=(str(log),),
            columns=InteractionColumns(rating="stars"),
            catalogue=str(catalogue),
            catalogue_columns=CatalogueColumns(attributes=("kind",)),
        ),
        semantic_ids=SemanticIdSettings(level_sizes=(4, 4), vector_dims=8, window=2),
        exclude_seen=exclude_seen,
        max_history=max_history,
    )
    return Dataset.open(prepare(settings, directory / "data").directory)
