"""The files of a world as Arrow tables: what a shop would bring, and the truth apart from it.

Ids are whole numbers from 0 on. The rows of a log are in order of user and time.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.errors import DataError
from sluice.catalog.simulator.items import SEGMENTS, WorldItems
from sluice.catalog.simulator.sessions import START, STEP_SECONDS, BlockLog
from sluice.catalog.simulator.settings import WorldSettings

LOG_FILE = "interactions.parquet"
EXPOSED_BY = ("logger", "exploration")

INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.int32(), nullable=False),
        pa.field("item_id", pa.int32(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),  # seconds since 1970
        pa.field("position", pa.int8(), nullable=False),  # of the slot, from 1
        pa.field("propensity", pa.float32(), nullable=False),
        pa.field("click", pa.bool_(), nullable=False),
        pa.field("dwell_seconds", pa.float32()),  # of clicks
        pa.field("exposed_by", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    ]
)
USERS = pa.schema(
    [
        pa.field("user_id", pa.int32(), nullable=False),
        pa.field("favourite_category", pa.string(), nullable=False),
        pa.field("joined", pa.int64(), nullable=False),  # day of the first visit, seconds since 1970
    ]
)
ITEMS = pa.schema(
    [
        pa.field("item_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("brand", pa.string(), nullable=False),
        pa.field("available_from", pa.int64(), nullable=False),  # seconds since 1970
        pa.field("available_until", pa.int64(), nullable=False),  # the first second that it is not
    ]
)
TRUE_USERS = pa.schema(
    [
        pa.field("user_id", pa.int32(), nullable=False),
        pa.field("segment", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("first_step", pa.int32(), nullable=False),
    ]
)
TRUE_ITEMS = pa.schema(
    [
        pa.field("item_id", pa.int32(), nullable=False),
        pa.field("first_step", pa.int32(), nullable=False),
        pa.field("last_step", pa.int32(), nullable=False),
        pa.field("popularity", pa.float32(), nullable=False),
        *(pa.field(f"quality_{name}", pa.float32(), nullable=False) for name in SEGMENTS),
        *(pa.field(f"vector_{name}", pa.list_(pa.float32()), nullable=False) for name in SEGMENTS),
    ]
)


def log_table(log: BlockLog) -> pa.Table:
    """What is logged of a block, schema INTERACTIONS."""
    logged = log.logged
    users, steps, slots = np.nonzero(logged)  # in order of user, step and slot
    clicked = log.clicked[logged]
    exposed = pa.DictionaryArray.from_arrays(log.explored[logged].astype(np.int8), list(EXPOSED_BY))
    columns = [
        log.users.ids[users],
        log.items[logged],
        log.timestamps[users, steps] + slots,
        (slots + 1).astype(np.int8),
        log.propensity[logged],
        clicked,
        pa.array(log.dwell[logged], mask=~clicked),
        exposed,
    ]
    return pa.table([pa.array(column) for column in columns], schema=INTERACTIONS)


def read_log(directory: str | Path, columns: list[str], where: tuple[str, str, object]) -> pa.Table:
    """The rows of a world's log that pass the filter `where` of pyarrow, such as ("click", "=", True).

    Raises:
        DataError: there is no log that can be read.
    """
    try:
        return pq.read_table(Path(directory) / LOG_FILE, columns=columns, filters=[where])
    except (OSError, ValueError) as error:
        raise DataError(
            f"the log of the world {directory} cannot be read: {error}. Run `sluice simulate` again"
        ) from None


def user_table(log: BlockLog) -> pa.Table:
    """The users of a block as a shop knows them, schema USERS."""
    joined = START + log.users.first_step.astype(np.int64) * STEP_SECONDS
    columns = [log.users.ids, _names("c", log.users.favourite), joined]
    return pa.table([pa.array(column) for column in columns], schema=USERS)


def true_user_table(log: BlockLog) -> pa.Table:
    """The users of a block as they are, schema TRUE_USERS."""
    segment = pa.DictionaryArray.from_arrays(log.users.segment, list(SEGMENTS))
    columns = [pa.array(log.users.ids), segment, pa.array(log.users.first_step)]
    return pa.table(columns, schema=TRUE_USERS)


def item_table(world: WorldSettings, items: WorldItems) -> pa.Table:
    """The catalogue, schema ITEMS."""
    columns = [
        np.arange(world.items.count, dtype=np.int32),
        _names("c", items.category),
        _names("b", items.brand),
        START + items.first_step.astype(np.int64) * STEP_SECONDS,
        START + (items.last_step.astype(np.int64) + 1) * STEP_SECONDS,
    ]
    return pa.table([pa.array(column) for column in columns], schema=ITEMS)


def true_item_table(items: WorldItems) -> pa.Table:
    """The items as they are, schema TRUE_ITEMS."""
    count, dims = items.vectors.shape[1:]
    offsets = pa.array(np.arange(0, count * dims + 1, dims, dtype=np.int32))
    vectors = [pa.ListArray.from_arrays(offsets, pa.array(rows.ravel())) for rows in items.vectors]
    columns = [
        np.arange(count, dtype=np.int32),
        items.first_step,
        items.last_step,
        items.popularity,
        *items.quality,
    ]
    return pa.table([*(pa.array(column) for column in columns), *vectors], schema=TRUE_ITEMS)


def _names(letter: str, numbers: np.ndarray) -> list[str]:
    return [f"{letter}{number}" for number in numbers.tolist()]
