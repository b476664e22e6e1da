"""What YAML reads otherwise than people do is refused with its line.

Former names of settings are taken for one release, with a warning that has the new name.
"""

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


@pytest.mark.parametrize(
    ("content", "line", "kind"),
    [
        (b"\xff\xfe\x00", 1, "UTF-16"),
        ("name: a\n".encode("utf-16"), 1, "UTF-16"),
        ("name: a\n".encode("utf-16-le"), 1, "UTF-16"),
        ("name: a\n".encode("utf-32"), 1, "UTF-16 or UTF-32"),
        ("name: a\nseed: 1\n# caf\u00e9\n".encode("latin-1"), 3, "Latin-1"),
    ],
)
def test_a_file_that_is_no_text_in_utf8(tmp_path: Path, content: bytes, line: int, kind: str):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"is no text in UTF-8: line {line} has .*{kind}.*save it as UTF-8"
    ):
        read_settings(path)


def test_utf8_is_read_with_and_without_its_mark(tmp_path: Path):
    path = tmp_path / "run.yaml"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("name: caf\u00e9", encoding=encoding)
        assert read_settings(path) == {"name": "caf\u00e9"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nlearner:\n  steps: 7\nlearner:\n  lr: 1e-5",
            "line 4: the key learner stands twice, first in line 2",
        ),
        ("name: a\nlearner:\n  steps: 7\n  steps: 8", "line 4: the key steps stands twice, first in line 3"),
        ("name: a\nlearner: {steps: 7, 'steps': 8}", "line 2: the key steps stands twice"),
        ("name: a\nseed: 010", "line 2: 010 is an octal number in YAML: leave out the leading 0"),
        ("name: a\nlearner:\n  steps: -0_17", "line 3: -0_17 is an octal number"),
        ("name: a\nlearner: {steps: 12:30}", "line 2: 12:30 is a number in base 60 in YAML"),
        ("name: a\nlearner: {lr: 1:30.5}", "line 2: 1:30.5 is a number in base 60"),
        ("name: a\nlearner: {lr: [1", "line 2 is not valid YAML: while parsing a flow sequence: expected"),
        ("name: a\noutput: \x07", "is not valid YAML: unacceptable character"),
    ],
)
def test_what_yaml_reads_otherwise_than_people_do_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=010", "the value: 010 is an octal number"),
        ("learner.steps=12:30", "the value: 12:30 is a number in base 60"),
        ("learner={steps: 7, steps: 8}", "the value: the key steps stands twice"),
        ("output=runs #1", "'#1' is a comment in YAML and would be left out"),
        ("name=#1", "'#1' is a comment"),
        ("output=\udce9", "is not valid YAML"),
    ],
)
def test_an_override_is_held_to_the_same(tmp_path: Path, override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, "name: a"), [override])
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_people_and_yaml_read_alike_is_taken(tmp_path: Path):
    text = (
        "a: 0\nb: -0\nc: 00.10\nd: '010'\ne: '12:30'\nf: 1_000\ng: 0x1F\nh: 1e-5\ni: 08\nj: host:8265\n"
        "z: &z {k: 1, l: 2}\ny: &y {<<: *z, k: 3}\nx: {<<: *y, l: 4}"
    )
    raw = read_settings(written(tmp_path, text))
    assert [raw[name] for name in "abcdefghij"] == [
        0,
        0,
        0.1,
        "010",
        "12:30",
        1000,
        31,
        1e-5,
        "08",
        "host:8265",
    ]
    assert (raw["y"], raw["x"]) == ({"k": 3, "l": 2}, {"k": 3, "l": 4})
    assert load_config(written(tmp_path, "name: a"), ['output="runs #1"']).output == "runs #1"
    assert load_config(written(tmp_path, "name: a"), ["output=runs#1"]).output == "runs#1"
