"""Former names of settings: taken for one release, with a warning that has the new name."""

import logging
from pathlib import Path

import pytest
import yaml

from sluice.catalog.errors import ConfigError
from sluice.services.config import load_config
from sluice.services.config_reference import describe_settings, groups_below
from sluice.services.config_yaml import RENAMED, current_name, read_settings, rename_settings

# A value for each former name, and one other than its default.
VALUES = {"learner.recent_positions": 3, "learner.wait_s": 7.5}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def value_of(config: object, name: str) -> object:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def nested(name: str, value: object) -> dict:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def test_every_former_name_is_tried_and_leads_to_a_setting():
    assert VALUES.keys() == RENAMED.keys()
    names = {entry.path for group in groups_below(describe_settings()) for entry in group.entries}
    assert set(RENAMED.values()) <= names and not set(RENAMED) & names


@pytest.mark.parametrize("former", sorted(RENAMED))
def test_a_former_name_works_in_a_file_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, former: str
):
    path = written(tmp_path, yaml.safe_dump({"name": "a", **nested(former, VALUES[former])}))
    assert value_of(load_config(path), RENAMED[former]) == VALUES[former]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{path}: {former} is now called {RENAMED[former]}; the next release refuses the former name"
    )


@pytest.mark.parametrize("former", sorted(RENAMED))
def test_a_former_name_works_as_an_override_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, former: str
):
    path = written(tmp_path, yaml.safe_dump({"name": "a", **nested(RENAMED[former], VALUES[former])}))
    assert value_of(load_config(path, [f"{former}=99"]), RENAMED[former]) == 99
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"--set: {former} is now called {RENAMED[former]}"
    ]


def test_todays_names_warn_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    load_config(written(tmp_path, "name: a\nlearner: {rollout_timeout_s: 3}"), ["learner.prompts_per_user=2"])
    assert caplog.records == []


def test_an_override_by_the_new_name_wins_over_the_former_one_in_the_file(tmp_path: Path):
    path = written(tmp_path, "name: a\nlearner: {wait_s: 3}")
    assert load_config(path, ["learner.rollout_timeout_s=5"]).learner.rollout_timeout_s == 5
    assert load_config(path, ["learner={wait_s: 6}"]).learner.rollout_timeout_s == 6


def test_both_names_at_once_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has learner\.wait_s and learner\.rollout_timeout_s.*remove the"):
        load_config(written(tmp_path, "name: a\nlearner: {wait_s: 3, rollout_timeout_s: 4}"))


def test_the_table_may_move_a_setting_or_rename_a_group():
    raw = {"a": {"b": 1, "c": 2}, "old": {"x": {"y": 3}}}
    renamed = {"a.b": "d.e", "old": "new"}
    rename_settings(raw, "here", renamed)
    assert raw == {"a": {"c": 2}, "d": {"e": 1}, "new": {"x": {"y": 3}}}
    assert current_name("old.x.y", "here", renamed) == "new.x.y"
    assert current_name("older", "here", renamed) == "older"


def test_what_is_no_group_is_left_for_the_check_of_the_whole_config(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"learner: Input should be a valid dictionary"):
        load_config(written(tmp_path, "name: a\nlearner: 3"))
    raw = {"a": {"b": 1}, "d": 4}
    rename_settings(raw, "here", {"a.b": "d.e"})
    assert raw == {"a": {"b": 1}, "d": 4}


def test_a_file_that_is_no_text(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        read_settings(path)
