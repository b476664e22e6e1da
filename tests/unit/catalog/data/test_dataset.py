import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.dataset import FORMAT, Dataset
from sluice.catalog.data.schema import CATALOGUE, EXAMPLES, IMPRESSIONS, INTERACTIONS, USERS
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.data.split_settings import ColumnSplit
from sluice.catalog.errors import DataError

SEQUENCES = [[2, 0, 1, 3], [1, 2, 0]]


@pytest.fixture
def directory(tmp_path):
    """Two users, four items, leave-last-two-out, written by hand."""
    pq.write_table(pa.table({"user_id": ["ann", "bob"]}, schema=USERS), tmp_path / "users.parquet")
    catalogue = {
        "item_id": list("wxyz"),
        "codes": [[0, 1], [0, 0], [1, 1], [1, 0]],
        "attributes": [["g=a"], [], ["g=b", "g=a"], ["y=1"]],
        "title": ["W", None, "Y", "Z"],
    }
    pq.write_table(pa.table(catalogue, schema=CATALOGUE), tmp_path / "catalogue.parquet")
    users = [0] * 4 + [1] * 3
    interactions = {
        "user": users,
        "item": [2, 0, 1, 3, 1, 2, 0],
        "timestamp": [1, 2, 3, 4, 1, 1, 9],
        "rating": [5, None, 1, 2, 3, 4, 5],
        **{name: [None] * 7 for name in ("click", "dwell_seconds", "exposed_by", "part")},
    }
    table = pa.table(interactions, schema=INTERACTIONS)
    with pq.ParquetWriter(tmp_path / "interactions.parquet", INTERACTIONS) as writer:
        writer.write_table(table.slice(0, 4))
        writer.write_table(table.slice(4))
    split = pa.array(["pretrain", "valid", "test", "valid", "test"]).cast(EXAMPLES.field("split").type)
    examples = pa.table(
        [pa.array([0, 0, 0, 1, 1], pa.int32()), pa.array([1, 2, 3, 1, 2], pa.int32()), split], schema=EXAMPLES
    )
    with pq.ParquetWriter(tmp_path / "examples.parquet", EXAMPLES) as writer:
        writer.write_table(examples.slice(0, 3))
        writer.write_table(examples.slice(3))
    manifest = {
        "format": FORMAT,
        "settings": DataSettings(name="tiny").model_dump(mode="json"),
        "counts": {"users": 2},
        "level_sizes": [2, 2],
        "time_cuts": None,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_what_it_holds(directory):
    dataset = Dataset.open(str(directory))
    assert (dataset.name, dataset.users, dataset.items, dataset.level_sizes) == ("tiny", 2, 4, (2, 2))
    assert dataset.user_ids == ["ann", "bob"]
    assert dataset.item_ids == list("wxyz") and dataset.titles == ["W", None, "Y", "Z"]
    assert dataset.codes.dtype == np.int32 and dataset.codes.tolist() == [[0, 1], [0, 0], [1, 1], [1, 0]]
    assert dataset.attribute_names == ["g=a", "g=b", "y=1"]
    assert dataset.attributes.dtype == np.float32
    assert dataset.attributes.toarray().tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert dataset.offsets.dtype == np.int64 and dataset.offsets.tolist() == [0, 4, 7]
    np.testing.assert_array_equal(dataset.ratings, np.array([5, np.nan, 1, 2, 3, 4, 5], dtype=np.float32))
    assert dataset.timestamps.dtype == np.int64 and dataset.timestamps.tolist() == [1, 2, 3, 4, 1, 1, 9]
    assert dataset.settings == DataSettings(name="tiny")


def test_sequences_histories_and_targets(directory):
    dataset = Dataset.open(directory)
    assert [dataset.items_of(user).tolist() for user in range(2)] == SEQUENCES
    assert dataset.items_of(1).dtype == np.int32 and dataset.items_of(1).base is not None
    assert dataset.history(0, 3, None).tolist() == [2, 0, 1]
    assert dataset.history(0, 3, 2).tolist() == [0, 1]
    assert dataset.history(0, 3, 9).tolist() == [2, 0, 1]
    assert dataset.history(1, 1, 5).tolist() == [1]
    assert dataset.history(1, 0, 5).tolist() == []
    assert dataset.seen(1, 2).tolist() == [1, 2]
    assert [dataset.target(0, position) for position in range(4)] == SEQUENCES[0]
    assert dataset.target(1, 0) == 1


def test_examples_and_the_training_part(directory):
    dataset = Dataset.open(directory)
    found = {
        split: (dataset.examples(split).users.tolist(), dataset.examples(split).positions.tolist())
        for split in ("pretrain", "fresh", "valid", "test")
    }
    assert found == {
        "pretrain": ([0], [1]),
        "fresh": ([], []),
        "valid": ([0, 1], [2, 1]),
        "test": ([0, 1], [3, 2]),
    }
    assert dataset.examples("valid").users.dtype == dataset.examples("valid").positions.dtype == np.int32
    assert len(dataset.examples("test")) == 2
    assert dataset.lengths_until("pretrain").tolist() == [2, 1]
    assert dataset.lengths_until("valid").tolist() == [3, 2]
    assert dataset.prompt_part == "pretrain"
    with pytest.raises(ValueError, match="none of pretrain, fresh, valid, test"):
        dataset.examples("validation")


def test_ratings_are_none_when_there_are_none(directory):
    path = directory / "interactions.parquet"
    table = pq.read_table(path)
    index = table.schema.get_field_index("rating")
    pq.write_table(table.set_column(index, INTERACTIONS.field("rating"), pa.nulls(7, pa.float32())), path)
    assert Dataset.open(directory).ratings is None


def with_column(directory, name, values):
    path = directory / "interactions.parquet"
    table, field = pq.read_table(path), INTERACTIONS.field(name)
    pq.write_table(
        table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type)), path
    )


def with_reward(directory, reward):
    manifest = json.loads((directory / "manifest.json").read_text())
    columns = {"rating": "r", "click": "c", "dwell_seconds": "d"}
    manifest["settings"] |= {
        "reward": reward,
        "source": {"type": "table", "interactions": ["log"], "columns": columns},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_clicks_and_dwell_times_are_float_and_nan_where_missing(directory):
    assert Dataset.open(directory).clicks is None and Dataset.open(directory).dwell_seconds is None
    with_column(directory, "click", [True, False, None, True, False, True, None])
    with_column(directory, "dwell_seconds", [1.5, None, 0, 2, 3, 4, 5])
    dataset, nan = Dataset.open(directory), np.nan
    assert dataset.clicks.dtype == np.float32
    np.testing.assert_array_equal(dataset.clicks, [1, 0, nan, 1, 0, 1, nan])
    np.testing.assert_array_equal(dataset.dwell_seconds, [1.5, nan, 0, 2, 3, 4, 5])
    assert dataset.outcome("click") is dataset.clicks and dataset.outcome("rating") is dataset.ratings
    assert dataset.outcome("dwell_seconds") is dataset.dwell_seconds


def test_the_logged_reward_by_user_and_position(directory):
    with_column(directory, "click", [True, False, None, True, False, True, None])
    users, positions = np.array([1, 0, 0, 1], np.int32), np.array([2, 1, 3, 0], np.int32)
    for reward, expected in (
        ("auto", [5, np.nan, 2, 3]),  # the ratings
        ("rating", [5, np.nan, 2, 3]),
        ("click", [np.nan, 0, 1, 0]),
    ):
        with_reward(directory, reward)
        found = Dataset.open(directory).logged_rewards(users, positions)
        np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
        assert found.dtype == np.float32
    with_reward(directory, "none")
    assert Dataset.open(directory).logged_rewards(users, positions) is None
    with_reward(directory, "dwell_seconds")
    with pytest.raises(DataError, match=r"data\.reward is dwell_seconds, but no interaction of .* has one"):
        _ = Dataset.open(directory).reward_column


def test_without_ratings_auto_is_no_reward(directory):
    with_column(directory, "rating", [None] * 7)
    assert Dataset.open(directory).reward_column is None


def test_item_shares_are_of_what_is_known(directory):
    dataset = Dataset.open(directory)
    assert dataset.known_until("pretrain").tolist() == [True, True, False, False, True, False, False]
    assert dataset.item_shares("pretrain").dtype == np.float32  # items 2 and 0 of ann, 1 of bob
    np.testing.assert_allclose(dataset.item_shares("pretrain"), [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_a_directory_that_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"is no prepared data set.*sluice prepare"):
        Dataset.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, this version reads {FORMAT}; prepare it again"),
        ({"format": None}, "has format None"),
        ({"settings": {"name": "x", "no_such": 1}}, "settings that cannot be read"),
    ],
)
def test_a_manifest_of_another_version(directory, change, message):
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        Dataset.open(directory)


def test_damage_is_named(directory):
    (directory / "interactions.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be read"):
        _ = Dataset.open(directory).offsets
    (directory / "examples.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks examples\.parquet"):
        Dataset.open(directory)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        Dataset.open(directory)


def with_impressions(directory, split=None, cuts=None, parts=(None,) * 6):
    rows = {"user": [0, 0, 0, 0, 1, 1], "item": [3, 2, 1, 0, 3, 2], "timestamp": [0, 2, 3, 4, 1, 9]}
    rows["part"] = list(parts)
    pq.write_table(pa.table(rows, schema=IMPRESSIONS), directory / "impressions.parquet")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["settings"]["split"] = split or manifest["settings"]["split"]
    (directory / "manifest.json").write_text(json.dumps(manifest | {"time_cuts": cuts}))
    return Dataset.open(directory)


def pairs(shown):
    assert shown.users.dtype == shown.items.dtype == shown.positions.dtype == np.int32
    assert len(shown) == len(shown.items) == len(shown.positions) == len(shown.parts)
    return list(zip(shown.users.tolist(), shown.items.tolist(), strict=True))


def test_impressions_end_where_the_user_goes_on_in_the_next_part(directory):
    dataset = with_impressions(directory)  # validation begins at 3 for ann and at 1 for bob
    assert pairs(dataset.impressions("pretrain")) == [(0, 3), (0, 2)]
    assert pairs(dataset.impressions("fresh")) == pairs(dataset.impressions("pretrain"))
    assert pairs(dataset.impressions("valid")) == [(0, 3), (0, 2), (0, 1), (1, 3)]
    assert pairs(dataset.impressions("test")) == [(0, 3), (0, 2), (0, 1), (0, 0), (1, 3), (1, 2)]


def test_impressions_end_at_the_cut_where_time_is_split(directory):
    split = {"type": "global_time", "valid_share": 0.2, "test_share": 0.2}
    dataset = with_impressions(directory, split, {"fresh_from": None, "valid_from": 3, "test_from": 9})
    assert pairs(dataset.impressions("pretrain")) == [(0, 3), (0, 2), (1, 3)]
    assert pairs(dataset.impressions("fresh")) == pairs(dataset.impressions("pretrain"))
    assert pairs(dataset.impressions("valid")) == [(0, 3), (0, 2), (0, 1), (0, 0), (1, 3)]
    assert len(pairs(dataset.impressions("test"))) == 6
    split = {"type": "fresh", "by": "time"}
    dataset = with_impressions(directory, split, {"fresh_from": 2, "valid_from": 4, "test_from": 9})
    assert pairs(dataset.impressions("pretrain")) == [(0, 3), (1, 3)]
    assert pairs(dataset.impressions("fresh")) == [(0, 3), (0, 2), (0, 1), (1, 3)]


def test_an_impression_stands_behind_the_interactions_with_an_earlier_time(directory):
    # ann's interactions are at 1, 2, 3, 4 and bob's at 1, 1, 9; shown was at 0, 2, 3, 4 and at 1, 9.
    dataset = with_impressions(directory)
    assert dataset.impressions("test").positions.tolist() == [0, 1, 2, 3, 0, 2]
    for part in ("pretrain", "fresh", "valid"):
        shown = dataset.impressions(part)
        assert (shown.positions <= dataset.lengths_until(part)[shown.users]).all(), part


def test_an_impression_stands_behind_all_earlier_parts_that_the_log_names(directory):
    table = pq.read_table(directory / "interactions.parquet").drop(["part"])
    parts = pa.array([0, 0, 2, 3, 0, 2, 2], INTERACTIONS.field("part").type)
    pq.write_table(table.append_column("part", parts), directory / "interactions.parquet")
    # ann's at 0 is of validation and her one at 4 of the pretrain part, against the order of time.
    dataset = with_impressions(directory, parts=(2, 0, 3, 0, 0, 2))
    dataset.settings = dataset.settings.model_copy(update={"split": ColumnSplit(type="column")})
    assert dataset.impressions("test").positions.tolist() == [2, 1, 3, 2, 0, 2]
    assert pairs(dataset.impressions("pretrain")) == [(0, 2), (0, 0), (1, 3)]
    assert dataset.impressions("pretrain").positions.tolist() == [1, 2, 0]
    assert dataset.impressions("valid").parts.tolist() == [2, 0, 0, 0, 2]


def test_what_took_place_in_a_log_with_impressions_is_a_click(directory):
    assert Dataset.open(directory).clicks is None
    assert with_impressions(directory).clicks.tolist() == [1.0] * 7


def test_a_log_without_clicks_has_no_impressions(directory):
    assert pairs(Dataset.open(directory).impressions("test")) == []
