import datetime

import pytest
import yaml
from pydantic import ValidationError

from sluice.catalog.data.settings import DataSettings
from sluice.catalog.data.split_settings import ColumnSplit, FreshLogs, GlobalTime

TABLE = {"type": "table", "interactions": ["log.parquet"]}


def refused(message, **given):
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate({"source": TABLE} | given)


def test_moments_are_text_or_numbers_and_a_yaml_date_is_text():
    given = yaml.safe_load("{valid_from: 2024-01-31, test_from: 1709251200}")
    assert isinstance(given["valid_from"], datetime.date)
    split = GlobalTime.model_validate(given)
    assert split.moments == {"valid_from": "2024-01-31", "test_from": 1_709_251_200}
    assert GlobalTime.model_validate(split.model_dump(mode="json")) == split
    assert GlobalTime().moments == {}


def test_all_moments_or_none_and_no_shares_beside_them():
    with pytest.raises(ValidationError, match="valid_from without test_from"):
        GlobalTime(valid_from=5)
    with pytest.raises(ValidationError, match="valid_from, test_from without fresh_from"):
        FreshLogs(by="time", valid_from=5, test_from=6)
    with pytest.raises(
        ValidationError, match="test_share decides nothing where valid_from, test_from are given"
    ):
        GlobalTime(valid_from=5, test_from=6, test_share=0.2)
    with pytest.raises(ValidationError, match="set by to time"):
        FreshLogs(fresh_from=4, valid_from=5, test_from=6)
    with pytest.raises(ValidationError, match="'yesterday' is no moment: give ISO 8601"):
        GlobalTime(valid_from="yesterday", test_from=6)
    moments = {"fresh_from": 4, "valid_from": 5, "test_from": 6}
    assert FreshLogs(by="time", **moments).moments == moments


def test_a_column_split_names_every_value_once():
    assert ColumnSplit(valid=("dev",)).valid == ("dev",)
    with pytest.raises(ValidationError, match="'test' names more than one part"):
        ColumnSplit(valid=("dev", "test"))


def test_splits_that_come_with_the_log_need_it_there():
    refused("which MovieLens has not", source={"type": "movielens-100k"}, split={"type": "column"})
    refused(r"source\.columns\.part \(which is None\)", split={"type": "column"})
    named = TABLE | {"columns": {"part": "split"}}
    refused(r"which is 'split'\), and split leave_last_two_out is set", source=named)
    assert DataSettings.model_validate({"source": named, "split": {"type": "column"}}).split == ColumnSplit()
    refused(r"needs files in source\.valid and in source\.test", split={"type": "files"})
    parts = TABLE | {"valid": ["v.parquet"], "test": ["t.parquet"]}
    refused(r"source\.valid holds the files of one part, and split leave_last_two_out", source=parts)
    refused(r"needs files in", source=TABLE | {"valid": ["v.parquet"]}, split={"type": "files"})
    assert DataSettings.model_validate({"source": parts, "split": {"type": "files"}}).split.type == "files"
