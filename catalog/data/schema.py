"""The Arrow schemas of a prepared data set: what lies on disk after `sluice prepare`.

Inside Sluice an item is its row number in `catalogue.parquet` and a user its row number in `users.parquet`
(int32); the user's own ids stay in those two files.
"""

import pyarrow as pa

USERS = pa.schema([pa.field("user_id", pa.string(), nullable=False)])
# Of a source that knows its users: "age=30..40", "favourite=c3"; empty for a user that it does not know.
KNOWN_USERS = pa.schema([*USERS, pa.field("attributes", pa.list_(pa.string()), nullable=False)])

CATALOGUE = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("codes", pa.list_(pa.int32()), nullable=False),  # [L], one per level
        # "genre=Comedy", "year=1995"; may be empty
        pa.field("attributes", pa.list_(pa.string()), nullable=False),
        pa.field("title", pa.string()),
    ]
)

# Sorted by user, then part where the log names parts, then time; ties keep the order of the source.
INTERACTIONS = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("rating", pa.float32()),
        pa.field("click", pa.bool_()),
        pa.field("dwell_seconds", pa.float32()),
        pa.field("exposed_by", pa.string()),
        pa.field("part", pa.int8()),  # an index into SPLITS, where the log names the part of its rows
    ]
)

# How an interaction came to be shown. These columns follow the others where the log names them.
EXPOSURE = pa.schema(
    [
        pa.field("propensity", pa.float32()),  # chance that the item was shown there, in (0, 1]
        pa.field("slate_position", pa.int32()),  # place in the slate, from 1
    ]
)
EXPOSED_INTERACTIONS = pa.schema([*INTERACTIONS, *EXPOSURE])

# What was shown to a user and not taken. Sorted as interactions are. The file is there when there are any.
IMPRESSIONS = pa.schema([INTERACTIONS.field(name) for name in ("user", "item", "timestamp", "part")])

# One example is one position of a user's sequence: the target is that interaction, the history all before it.
EXAMPLES = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("split", pa.dictionary(pa.int8(), pa.string()), nullable=False),  # train, valid, test
    ]
)
