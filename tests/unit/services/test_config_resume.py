"""What a resumed run may change of its config."""

from pathlib import Path

import pytest

from sluice.catalog.errors import ConfigError
from sluice.services.config import RunConfig, dump_config, load_config
from sluice.services.config_resume import (
    FIXED,
    FREE,
    check_resume,
    find_changes,
    fixed_reason,
    name_changes,
    read_record,
)

TABLE = "{type: table, interactions: [logs/a.csv]}"


def config_of(
    tmp_path: Path, *overrides: str, text: str = "name: a\npolicy: {hidden_size: 128}\n"
) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def recorded(tmp_path: Path, *overrides: str) -> Path:
    """A run directory with a record of what it was run with."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(dump_config(config_of(tmp_path, *overrides)))
    return directory


def test_the_table_decides_on_every_part_of_the_config():
    whole = {name for name in FIXED if "." not in name} | set(FREE)
    assert whole == set(RunConfig.model_fields)
    assert not set(FIXED) & set(FREE)
    assert fixed_reason("learner.lora.rank") and not fixed_reason("learner.lora_like"), "whole names count"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("name=b", "name"),
        ("seed=1", "seed"),
        ("data.max_history=20", "data.max_history"),
        ("data.name=other", "data.name"),
        ("data.split={type: global_time}", "data.split.type"),
        ("policy.layers=5", "policy.layers"),
        ("pretrain.epochs=3", "pretrain.epochs"),
        ("ranker.lr=1e-5", "ranker.lr"),
        ("ranker.options={k: 1}", "ranker.options"),
        ("evaluation.beam_width=30", "evaluation.beam_width"),
        ("objective.type=grpo", "objective.type"),
        ("learner.workers=2", "learner.workers"),
        ("learner.average_decay=0.99", "learner.average_decay"),
        ("learner.lora={rank: 4}", "learner.lora.rank"),
        ("learner.reference.type=ema", "learner.reference.type"),
        ("learner.prompts_per_step=16", "learner.prompts_per_step"),
        ("learner.prompts_per_user=2", "learner.prompts_per_user"),
    ],
)
def test_what_the_run_was_made_with_must_stay(tmp_path: Path, change: str, field: str):
    directory = recorded(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_resume(config_of(tmp_path, change, "learner.steps=400"), directory)
    message = str(caught.value)
    assert f"  {field} " in message and fixed_reason(field) in message
    assert "learner.steps 200" not in message, "what may change is not listed"


def test_the_message_has_old_and_new_values_and_the_remedies(tmp_path: Path):
    directory = recorded(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_resume(
            config_of(tmp_path, "policy.layers=5", "data.semantic_ids.level_sizes=[8, 8]"), directory
        )
    assert str(caught.value).splitlines() == [
        f"{directory} was run with another config, and what is in it does not fit this one:",
        "  data.semantic_ids.level_sizes null -> [8, 8] (the prepared data, the semantic IDs and so "
        "the catalogue are made from it)",
        "  policy.layers 4 -> 5 (the checkpoints hold this model)",
        "Undo these changes, or start a new run: give another name, seed or output and leave out --resume. "
        "What may change: learner.steps, learner.lr, learner.evaluate_every, rollout.*, queue.*, cluster.* "
        "and more, see docs/configuration.md.",
    ]


def test_the_rest_may_change_and_is_named_in_one_line(tmp_path: Path):
    directory = recorded(tmp_path)
    changes = check_resume(
        config_of(
            tmp_path,
            "learner.steps=400",
            "learner.lr=1e-5",
            "learner.micro_batch_prompts=8",
            "learner.reference={type: frozen}",
            "rollout.decode.candidates=8",
            "queue.max_groups=64",
            "objective={type: adagrpo, weight: 2.0}",
            "cluster.learner_cpus=2",
            "output=/elsewhere",
        ),
        directory,
    )
    assert name_changes(changes) == (
        "output runs -> /elsewhere, rollout.decode.candidates 16 -> 8, queue.max_groups 128 -> 64, "
        "objective.weight 1.0 -> 2.0, learner.steps 200 -> 400, learner.micro_batch_prompts null -> 8, "
        "learner.lr 0.0001 -> 1e-05, cluster.learner_cpus 1.0 -> 2.0"
    )


def test_the_same_config_and_a_first_start_change_nothing(tmp_path: Path):
    assert check_resume(config_of(tmp_path), recorded(tmp_path)) == ()
    assert check_resume(config_of(tmp_path), tmp_path / "nowhere") == ()
    assert read_record(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["a: [", "name: a\nlearner: {stepz: 3}", "[1]"])
def test_a_record_that_cannot_be_read_stops_the_start_with_a_remedy(tmp_path: Path, text: str):
    directory = recorded(tmp_path)
    (directory / "config.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"record of what .* was run with cannot be read(.|\n)*move that file away"
    ):
        check_resume(config_of(tmp_path), directory)


def test_a_record_of_the_release_before_is_read_under_todays_names(tmp_path: Path):
    """Without settings that are new since, and with those that have other names now."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(
        "name: a\nseed: 0\noutput: /data/runs\npolicy: {hidden_size: 128}\n"
        "learner: {steps: 200, wait_s: 60.0, recent_positions: 4}\n"
    )
    changes = check_resume(
        config_of(tmp_path, "learner.prompts_per_user=4", "learner.rollout_timeout_s=90"), directory
    )
    assert [change.field for change in changes] == ["learner.rollout_timeout_s"]
    with pytest.raises(ConfigError, match=r"learner\.prompts_per_user 4 -> 5"):
        check_resume(config_of(tmp_path, "learner.prompts_per_user=5"), directory)


def test_the_record_that_the_release_before_wrote_is_read():
    run = Path(__file__).parents[2] / "data" / "run-of-0.1"
    config = read_record(run)
    assert config is not None and check_resume(config, run) == ()
    longer = config.model_copy(update={"learner": config.learner.model_copy(update={"steps": 12})})
    assert name_changes(check_resume(longer, run)) == "learner.steps 8 -> 12"


def test_only_an_objective_of_the_same_kind_fits_the_checkpoint(tmp_path: Path):
    objective = "objective={type: a_sft, baseline: {type: %s}}"
    directory = recorded(tmp_path, objective % "candidates")
    with pytest.raises(ConfigError, match=r"objective\.baseline\.type candidates -> value_head"):
        check_resume(config_of(tmp_path, objective % "value_head"), directory)


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("logs/a.csv", "/here/logs/a.csv", True),
        ("/here/logs/a.csv", "./logs/a.csv", True),
        ("/here/logs/a.csv", "/there/logs/a.csv", False),
        ("logs/a.csv", "/here/b.csv", False),
        ("logs/a.csv", "logs/b.csv", False),
        ("a.csv", "/here/ba.csv", False),
    ],
)
def test_a_path_is_the_same_when_submit_made_it_absolute(tmp_path: Path, before: str, now: str, same: bool):
    first, second = (
        config_of(tmp_path, f"data.source={{type: table, interactions: [{path}]}}") for path in (before, now)
    )
    assert bool(find_changes(first, second)) is not same


def test_a_further_file_of_the_log_is_a_change(tmp_path: Path):
    first, second = (
        config_of(tmp_path, f"data.source={{type: table, interactions: [{paths}]}}")
        for paths in ("a.csv", "a.csv, b.csv")
    )
    assert [change.field for change in find_changes(first, second)] == ["data.source.interactions"]


def test_a_setting_that_is_there_no_longer_is_a_change(tmp_path: Path):
    first = config_of(tmp_path, "learner.lora={rank: 4}")
    assert "learner.lora.rank 4 -> null" in name_changes(find_changes(first, config_of(tmp_path)))
