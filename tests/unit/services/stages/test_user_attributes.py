"""What is known of users beside the log: from their table to the prepared data set."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.schema import KNOWN_USERS, USERS
from sluice.catalog.data.settings import DataSettings, SemanticIdSettings, UserColumns
from sluice.catalog.errors import DataError
from sluice.services.stages.prepare import prepare_data

USERS_COUNT = 6
KNOWN = {
    "id": ["u1", "u0", "u3", "stranger", "u4"],
    "age": [30, 20, None, 99, 30],
    "likes": ["a|b", "a", "", "c", None],
}


def write(folder, users=None, **options):
    folder.mkdir(exist_ok=True)
    rows = [(f"u{user}", f"i{(user + step) % 7}", step) for user in range(USERS_COUNT) for step in range(4)]
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), folder / "log.parquet")
    source = {"type": "table", "interactions": [str(folder / "log.parquet")], "timestamp_unit": "none"}
    if users is not None:
        pq.write_table(pa.table(users), folder / "users.parquet")
        source |= {"users": str(folder / "users.parquet")}
        source |= {"user_columns": UserColumns(id="id", attributes=("age", "likes"))}
    ids = SemanticIdSettings(level_sizes=(4, 4), vector_dims=4)
    return DataSettings(**({"name": "known", "source": source, "semantic_ids": ids} | options))


def test_a_user_has_the_attributes_of_the_table_whatever_its_order(tmp_path):
    result = prepare_data(write(tmp_path / "raw", KNOWN), tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "users.parquet").equals(KNOWN_USERS)
    dataset = Dataset.open(tmp_path / "out")
    matrix, names = dataset.user_attributes
    assert names == ["age=20", "age=30", "likes=a", "likes=b"]
    assert matrix.shape == (USERS_COUNT, 4) and matrix.dtype == np.float32
    has = {user: [names[i] for i in matrix[row].indices] for row, user in enumerate(dataset.user_ids)}
    assert has == {
        "u0": ["age=20", "likes=a"],
        "u1": ["age=30", "likes=a", "likes=b"],
        "u4": ["age=30"],
        **{user: [] for user in ("u2", "u3", "u5")},
    }
    assert result.manifest["log"]["users_without_attributes"] == 3
    assert result.manifest["rejected"]["users"] == {"rows": 5, "bad": 0, "by_reason": {}}
    assert prepare_data(write(tmp_path / "raw", KNOWN), tmp_path / "out").reused
    changed = KNOWN | {"age": [31, 20, None, 99, 30]}
    assert not prepare_data(write(tmp_path / "raw", changed), tmp_path / "out").reused


def test_without_a_table_of_users_the_data_are_as_ever(tmp_path):
    result = prepare_data(write(tmp_path / "raw"), tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "users.parquet").equals(USERS)
    assert Dataset.open(tmp_path / "out").user_attributes is None
    assert (
        "users" not in result.manifest["rejected"]
        and "users_without_attributes" not in result.manifest["log"]
    )
    assert "user_columns" not in json.dumps(result.manifest["settings"])


@pytest.mark.parametrize(("user", "reason"), [("", "is empty"), ("u1", "stands in an earlier row")])
def test_a_user_that_cannot_be_told_is_refused_with_its_row(tmp_path, user, reason):
    known = KNOWN | {"id": ["u1", "u0", user, "stranger", "u4"]}
    with pytest.raises(DataError, match=rf"rows of the users .*\n.*users.parquet, row 3, user_id=.*{reason}"):
        prepare_data(write(tmp_path / "raw", known), tmp_path / "out")
    settings = write(tmp_path / "raw", known, max_bad_share=0.2)
    result = prepare_data(settings, tmp_path / "out")
    assert result.manifest["rejected"]["users"]["bad"] == 1
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["table"] == "users"


def test_a_column_that_is_not_there_is_named(tmp_path):
    known = {name: values for name, values in KNOWN.items() if name != "likes"}
    with pytest.raises(DataError, match=r"no column 'likes' \(data\.source\.user_columns\.attributes\)"):
        prepare_data(write(tmp_path / "raw", known), tmp_path / "out")
    known = {"name" if name == "id" else name: values for name, values in KNOWN.items()}
    with pytest.raises(DataError, match=r"no column 'id' \(data\.source\.user_columns\.id\)"):
        prepare_data(write(tmp_path / "raw", known), tmp_path / "out")


def test_the_name_of_an_id_needs_a_table_of_users():
    source = {"type": "table", "interactions": ["log.parquet"], "user_columns": {"id": "uid"}}
    with pytest.raises(ValidationError, match=r"user_columns.id is 'uid', and users names no file"):
        DataSettings.model_validate({"source": source})


@pytest.mark.parametrize(
    "source", [{"users": "users.parquet"}, {"user_columns": {"attributes": ["age"]}}], ids=["file", "columns"]
)
def test_a_table_of_users_comes_with_its_attributes(source):
    with pytest.raises(ValidationError, match="give both, or neither"):
        DataSettings.model_validate({"source": {"type": "table", "interactions": ["log.parquet"], **source}})


def test_users_without_attributes_are_told(tmp_path):
    warnings = prepare_data(write(tmp_path / "raw", KNOWN), tmp_path / "out").warnings
    assert any(warning.startswith("3 users of the log have no attribute") for warning in warnings)


@pytest.mark.parametrize(
    "users",
    [
        KNOWN | {"id": [f"{user}" for user in range(5)]},
        {"id": ["0", "u1"], "age": [30, None], "likes": ["", ""]},
    ],
    ids=["other ids", "empty columns"],
)
def test_a_table_that_knows_no_user_of_the_log_is_refused(tmp_path, users):
    with pytest.raises(DataError) as error:
        prepare_data(write(tmp_path / "raw", users), tmp_path / "out")
    said = str(error.value)
    assert f"in data.source.users {tmp_path / 'raw' / 'users.parquet'}: its user_columns.id 'id'" in said
    assert "ids such as '0', the log such as 'u" in said


def test_an_empty_table_of_users_is_refused(tmp_path):
    empty = {name: pa.array([], pa.string()) for name in KNOWN}
    with pytest.raises(DataError, match=r"data\.source\.users .*users\.parquet holds no user"):
        prepare_data(write(tmp_path / "raw", empty), tmp_path / "out")


def test_a_user_has_a_bounded_number_of_attributes(tmp_path):
    many = KNOWN | {"likes": ["|".join(map(str, range(63))), *["a"] * 4]}
    prepare_data(write(tmp_path / "raw", many), tmp_path / "out")  # and the age
    many["likes"][0] += "|63"
    with pytest.raises(
        DataError, match=r"user 'u1' of data\.source\.users .* has 65 attributes, more than 64"
    ):
        prepare_data(write(tmp_path / "raw", many), tmp_path / "out")
