"""The Arrow schemas of the contracts: what lies on disk after `prepare`, and what travels through the rollout queue.

Inside Sluice an item is its row number in `catalogue.parquet` and a user its row number in `users.parquet` (int32); the
user's own ids stay in those two files.
"""

import pyarrow as pa

ROLLOUT_GROUP_VERSION = 2

USERS = pa.schema([pa.field("user_id", pa.string(), nullable=False)])

CATALOGUE = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("codes", pa.list_(pa.int32()), nullable=False),  # [L], one per level
        pa.field("attributes", pa.list_(pa.string()), nullable=False),  # "genre=Comedy", "year=1995"; may be empty
        pa.field("title", pa.string()),
    ]
)

# One version of a run's catalogue after the first: an item that is new, or one that is retired (`codes` null).
CATALOGUE_CHANGE = pa.schema(
    [pa.field("item_id", pa.string(), nullable=False), pa.field("codes", pa.list_(pa.int32()))]
)

# Sorted by user, then time; ties keep the order of the source.
INTERACTIONS = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("rating", pa.float32()),
        pa.field("click", pa.bool_()),
        pa.field("dwell_seconds", pa.float32()),
        pa.field("exposed_by", pa.string()),
    ]
)

# One example is one position of a user's sequence: the target is that interaction, the history all before it.
EXAMPLES = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("split", pa.dictionary(pa.int8(), pa.string()), nullable=False),  # train, valid, test
    ]
)

_int_list, _float_list = pa.list_(pa.int32()), pa.list_(pa.float32())

# One row per prompt. K candidates, L tokens each, M distractors; flattened lists are row-major [K, L].
ROLLOUT_GROUP = pa.schema(
    [
        pa.field("lease_id", pa.int64(), nullable=False),
        pa.field("user", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("history", _int_list, nullable=False),  # [n] item rows, oldest first, as the prompt showed them
        pa.field("excluded", _int_list, nullable=False),  # [E] item rows that constrained decoding left out
        pa.field("target_item", pa.int32(), nullable=False),
        pa.field("candidate_tokens", _int_list, nullable=False),  # [K*L] token ids
        pa.field("behaviour_log_probs", _float_list, nullable=False),  # [K*L] nats, of the distribution drawn from
        # [K] nats, log of the chance of being in the group; empty unless drawn without replacement (stochastic beams)
        pa.field("inclusion_log_probs", _float_list, nullable=False),
        pa.field("candidate_items", _int_list, nullable=False),  # [K] item rows, -1: no item of the catalogue
        pa.field("candidate_scores", _float_list, nullable=False),  # [K] ranker scores, NaN: no item
        pa.field("target_score", pa.float32(), nullable=False),
        pa.field(
            "candidate_spread", _float_list, nullable=False
        ),  # [K] deviation of the score, NaN: no item, not known
        pa.field("target_spread", pa.float32(), nullable=False),
        pa.field("candidate_values", _float_list, nullable=False),  # [K] predicted logged reward, NaN likewise
        pa.field("target_value", pa.float32(), nullable=False),
        pa.field("distractor_items", _int_list, nullable=False),  # [M] item rows drawn from other prompts' candidates
        pa.field("distractor_scores", _float_list, nullable=False),  # [M] scored under this prompt's history
        pa.field("version_min", pa.int32(), nullable=False),  # oldest weights that produced a token of the group
        pa.field("version_max", pa.int32(), nullable=False),
        pa.field("catalogue_version", pa.int32(), nullable=False),  # of the trie that names the candidates' items
        pa.field("ranker_version", pa.string(), nullable=False),
        pa.field("generate_s", pa.float32(), nullable=False),  # submit to last token
        pa.field("score_s", pa.float32(), nullable=False),  # ranker request to answer
    ],
    metadata={b"sluice.rollout_group": str(ROLLOUT_GROUP_VERSION).encode()},
)
