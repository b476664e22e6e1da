"""`sluice config explain`: one setting, a group, and names that there are not."""

from pathlib import Path

import pytest

from sluice.services.cli import main as cli

ROOT = Path(__file__).parents[4]
CONFIG = str(ROOT / "configs" / "ml100k.yaml")


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> list[str]:
        """What is printed, line by line, without spaces that align."""
        assert cli.main(["config", "explain", *arguments]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_setting_with_its_facts(explain):
    assert explain("learner.rollout_timeout_s") == [
        "learner.rollout_timeout_s",
        "Longest wait for the rollouts of a step. The run then gives up and says why.",
        "type number > 0",
        "default 180.0",
        "unit seconds",
    ]


def test_a_setting_with_its_value_in_a_config(explain):
    lines = explain("learner.lr", "--config", CONFIG)
    assert {"type number > 0", "default 0.0001", "this config 0.001"} <= set(lines)
    assert "this config 0.1" in explain("learner.lr", "--config", CONFIG, "--set", "learner.lr=0.1")


def test_a_setting_of_several_types_is_told_apart(explain):
    lines = explain("objective.grpo.kl_beta")
    assert "where objective.type is grpo or mixture or adagrpo or rere" in lines
    assert "where objective.type is ecpo or gbpo" in lines
    assert [line for line in lines if line.startswith("default")] == ["default 0.001", "default 0.0"]
    lines = explain("objective.grpo.kl_beta", "--config", CONFIG)
    assert "where objective.type is adagrpo" in lines and "this config 0.5" in lines
    assert not any("ecpo" in line for line in lines)


def test_a_setting_that_the_config_has_no_use_for(explain):
    lines = explain("objective.pairs.z", "--config", CONFIG)
    assert lines[0] == "objective.pairs.z has no meaning in this config, which has other types."
    assert "default 1.0" in lines and not any(line.startswith("this config") for line in lines)


def test_settings_in_a_list(explain):
    lines = explain("objective.grpo.rewards.transform", "--config", CONFIG)
    assert "type one of raw, sigmoid, rank, zscore" in lines and "this config raw" in lines
    assert explain("objective.grpo.rewards[].transform")[0] == "objective.grpo.rewards.transform"


def test_a_group_is_a_table(explain):
    lines = explain("queue")
    assert "setting default meaning" in lines
    assert "max_groups 128 Groups leased and queued at most." in lines
    assert "(integer ≥ 1, groups)" in lines
    assert "max_groups 128 128 Groups leased and queued at most." in explain("queue", "--config", CONFIG)


def test_a_choice_of_types_lists_them_and_shows_the_chosen_one(explain):
    lines = explain("data.split")
    assert "type one of leave_last_two_out, global_time, fresh, column, files" in lines
    assert any(line.startswith("global_time By time") for line in lines)
    assert not any(line.startswith("valid_share") for line in lines)
    assert explain("data.split.type") == lines
    chosen = explain("data.split", "--config", CONFIG, "--set", "data.split.type=global_time")
    assert any(line.startswith("valid_share 0.1 0.1") for line in chosen)


def test_without_a_name_the_groups(explain):
    lines = explain()
    assert any(line.startswith("learner The optimizer loop") for line in lines)
    assert any(line.startswith("objective adagrpo") for line in lines)


def test_a_former_name_leads_to_the_new_one(explain, caplog: pytest.LogCaptureFixture):
    assert explain("learner.wait_s")[0] == "learner.rollout_timeout_s"
    assert "learner.wait_s is now called learner.rollout_timeout_s" in caplog.text


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("learner.lrr", "the nearest are learner.lr, "),
        ("lr", "the nearest are learner.lr, pretrain.lr, ranker.lr"),
        ("queue.max_group", "the nearest are queue.max_groups"),
        ("xyzzy", "docs/configuration.md lists all of them"),
    ],
)
def test_an_unknown_name_is_one_message_with_the_nearest(
    capsys: pytest.CaptureFixture[str], name: str, nearest: str
):
    assert cli.main(["config", "explain", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"sluice: there is no setting {name!r}; {nearest}")
    assert len(captured.err.splitlines()) == 1


def test_an_override_needs_a_config(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["config", "explain", "learner.lr", "--set", "learner.lr=1"]) == 2
    assert "give --config FILE too" in capsys.readouterr().err
