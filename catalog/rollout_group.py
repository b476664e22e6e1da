"""RolloutGroup: one prompt with its candidates and their scores, and its form on the wire.

On the wire a group is a row of an Arrow record batch. One stream per batch of leases goes through the object
store. The schema carries its version in its metadata; a reader refuses any other.

To add a column:

1. here: a field of `ROLLOUT_GROUP` and, under the same name, of `RolloutGroup`, with shape and unit; a line
   in `_check` if it is an array; `ROLLOUT_GROUP_VERSION` + 1. `encode_groups` and `decode_group` go by the
   schema, and reshape nothing but the two `[K, L]` columns that `decode_group` names;
2. where it is filled: `score_groups` in actors/rollout/groups.py, from the prompt, the engine's `Generation`
   or the ranker's `RankerOutput`;
3. where it is read: a tensor of `GroupBatch` in learner/batches/batch.py, which `collate_groups` in
   learner/batches/collate.py makes of it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sluice.catalog.errors import DataError

ROLLOUT_GROUP_VERSION = 4
_VERSION_KEY = b"sluice.rollout_group"
_int_list, _float_list = pa.list_(pa.int32()), pa.list_(pa.float32())

# One row per prompt. K candidates, L tokens each, J distractors; flattened lists are row-major [K, L].
ROLLOUT_GROUP = pa.schema(
    [
        pa.field("lease_id", pa.int64(), nullable=False),
        pa.field("user", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        # [n] item rows, oldest first, as the prompt showed them
        pa.field("history", _int_list, nullable=False),
        # [e] item rows that were no candidates: constrained decoding left them out
        pa.field("excluded", _int_list, nullable=False),
        pa.field("target_item", pa.int32(), nullable=False),
        pa.field("candidate_tokens", _int_list, nullable=False),  # [K*L] token ids
        # [K*L] nats, of the distribution drawn from
        pa.field("behaviour_log_probs", _float_list, nullable=False),
        # [K] nats, log of the chance of being in the group; empty unless drawn without replacement
        # (stochastic beams)
        pa.field("inclusion_log_probs", _float_list, nullable=False),
        # [K] item rows, -1: no item of the catalogue, or an excluded one
        pa.field("candidate_items", _int_list, nullable=False),
        pa.field("consumed", pa.int32(), nullable=False),  # candidates that are excluded items
        pa.field("candidate_scores", _float_list, nullable=False),  # [K] ranker scores, NaN: no item
        pa.field("target_score", pa.float32(), nullable=False),
        # [K] deviation of the score, NaN: no item, or not known
        pa.field("candidate_spread", _float_list, nullable=False),
        pa.field("target_spread", pa.float32(), nullable=False),
        # [K] predicted logged reward, NaN: no item, or not known
        pa.field("candidate_values", _float_list, nullable=False),
        pa.field("target_value", pa.float32(), nullable=False),
        # [J] item rows drawn from other prompts' candidates
        pa.field("distractor_items", _int_list, nullable=False),
        pa.field("distractor_scores", _float_list, nullable=False),  # [J] scored under this prompt's history
        # places that the ranker gave the user's last logged items, in the mean, 0 to 1; NaN: too few of them;
        # null: no gate asks for it
        pa.field("trust", pa.float32(), nullable=True),
        # the oldest weights that produced a token of the group
        pa.field("version_min", pa.int32(), nullable=False),
        pa.field("version_max", pa.int32(), nullable=False),
        # of the trie that names the candidates' items
        pa.field("catalogue_version", pa.int32(), nullable=False),
        pa.field("ranker_version", pa.string(), nullable=False),
        pa.field("generate_s", pa.float32(), nullable=False),  # submit to last token
        pa.field("score_s", pa.float32(), nullable=False),  # ranker request to answer
    ],
    metadata={_VERSION_KEY: str(ROLLOUT_GROUP_VERSION).encode()},
)


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """One prompt with its candidates and scores: the fields of `ROLLOUT_GROUP`, with their shapes."""

    lease_id: int
    user: int
    position: int
    history: np.ndarray  # [n] int32 item rows, oldest first, as the prompt showed them
    # [e] int32 item rows that were no candidates, such as what the user has: constrained decoding left them
    # out, and a free candidate that is one of them has no item
    excluded: np.ndarray
    target_item: int
    candidate_tokens: np.ndarray  # [K, L] int32 token ids
    behaviour_log_probs: np.ndarray  # [K, L] float32 nats, of the distribution drawn from
    # [K] float32 nats, log of the chance of being in the group; [0] unless drawn without replacement
    inclusion_log_probs: np.ndarray
    candidate_items: np.ndarray  # [K] int32 item rows, -1: no item of the catalogue, or an excluded one
    candidate_scores: np.ndarray  # [K] float32, NaN: no item
    target_score: float
    # [K] float32, deviation of the score over the ranker's ensemble, NaN: no item
    candidate_spread: np.ndarray
    target_spread: float  # NaN, and the candidates' with it: the ranker does not know it
    candidate_values: np.ndarray  # [K] float32, logged reward that the ranker predicts, NaN: no item
    target_value: float  # NaN likewise
    distractor_items: np.ndarray  # [J] int32 item rows; fewer when the batch offered fewer
    distractor_scores: np.ndarray  # [J] float32, scored under this prompt's history
    version_min: int  # oldest weights that produced a token of the group
    version_max: int
    ranker_version: str
    generate_s: float  # submit to last token
    score_s: float  # ranker request to answer
    # of the trie that constrained decoding chose from and that names the candidates' items
    catalogue_version: int = 0
    consumed: int = 0  # candidates that are excluded items
    # places that the ranker gave the user's last logged items, in the mean, 0 to 1; NaN: too few of them;
    # None: no gate asks for it
    trust: float | None = None


_ARRAYS = {field.name: field.type.value_type for field in ROLLOUT_GROUP if pa.types.is_list(field.type)}


def encode_groups(*groups: RolloutGroup) -> pa.RecordBatch:
    """The groups as rows, one each. All at once is a few times faster than one by one.

    Raises:
        DataError: the shapes of a group's arrays do not fit each other.
    """
    for group in groups:
        _check(group)
    columns = []
    for field in ROLLOUT_GROUP:
        values = [getattr(group, field.name) for group in groups]
        if field.name in _ARRAYS:
            flat = pa.array(
                np.concatenate([value.reshape(-1) for value in values]),
                type=_ARRAYS[field.name],
                from_pandas=False,
            )
            offsets = np.cumsum([0, *(value.size for value in values)], dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), flat))
        else:
            columns.append(pa.array(values, type=field.type))
    return pa.RecordBatch.from_arrays(columns, schema=ROLLOUT_GROUP)


def to_stream(records: pa.RecordBatch) -> bytes:
    """The rows as an Arrow IPC stream, which carries the schema and its version."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        writer.write_batch(records)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def from_stream(stream: bytes) -> pa.RecordBatch:
    """The rows of a stream, without a copy."""
    return pa.ipc.open_stream(stream).read_next_batch()


def decode_group(record: pa.RecordBatch) -> RolloutGroup:
    """The group of a one-row record batch; its arrays are read-only views of the record.

    Raises:
        DataError: the record has another version, other fields, not one row, or shapes that do not fit each
            other.
    """
    version = (record.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(ROLLOUT_GROUP_VERSION):
        raise DataError(
            f"a rollout group has schema version {version}, this release reads {ROLLOUT_GROUP_VERSION}: "
            "run the rollout actors and the learner from one release"
        )
    if not record.schema.equals(ROLLOUT_GROUP) or record.num_rows != 1:
        raise DataError(
            f"a rollout group must be one row of the schema ROLLOUT_GROUP, "
            f"got {record.num_rows} row(s) with the columns {', '.join(record.schema.names)}"
        )
    values = {}
    for field in ROLLOUT_GROUP:
        scalar = record.column(field.name)[0]
        values[field.name] = scalar.values.to_numpy() if field.name in _ARRAYS else scalar.as_py()
    count = max(1, len(values["candidate_items"]))
    for name in ("candidate_tokens", "behaviour_log_probs"):
        if len(values[name]) % count:
            raise DataError(
                f"rollout group of lease {values['lease_id']}: {name} has {len(values[name])} values, "
                f"which is no multiple of its {count} candidates"
            )
        values[name] = values[name].reshape(count, -1)
    group = RolloutGroup(**values)
    _check(group)
    return group


def _check(group: RolloutGroup) -> None:
    candidates = group.candidate_items.shape
    for name, shape in (
        ("candidate_tokens", (*candidates, group.candidate_tokens.shape[-1])),
        ("behaviour_log_probs", group.candidate_tokens.shape),
        ("inclusion_log_probs", candidates if group.inclusion_log_probs.size else (0,)),
        ("candidate_scores", candidates),
        ("candidate_spread", candidates),
        ("candidate_values", candidates),
        ("distractor_scores", group.distractor_items.shape),
    ):
        if getattr(group, name).shape != shape:
            raise DataError(
                f"rollout group of lease {group.lease_id}: {name} has shape {getattr(group, name).shape}, "
                f"expected {shape}"
            )
    for name, known in (("scores", True), ("spread", group.target_spread), ("values", group.target_value)):
        values = getattr(group, f"candidate_{name}")
        if (np.isnan(values) != ((group.candidate_items < 0) | np.isnan(known))).any():
            raise DataError(
                f"rollout group of lease {group.lease_id}: candidate_{name} must be NaN exactly where "
                f"candidate_items is -1, got {values.tolist()} for {group.candidate_items.tolist()}"
            )
