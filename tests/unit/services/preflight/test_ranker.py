"""A user's ranker tried in a process of its own, on real prompts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import DataSettings
from sluice.learner.objectives.settings.objective import AdaGrpoObjective
from sluice.services.config import RunConfig
from sluice.services.preflight import ranker
from sluice.services.preflight.ranker import Limits, Outcome, check_ranker, judge_outcome
from sluice.services.preflight.sample import draw_questions, sample_dataset
from tests.tiny_data import tiny_dataset

HERE = "tests.unit.services.preflight.rankers"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), outcomes=True).settings


def config_of(data, use, directory, **options):
    return RunConfig.model_validate(
        {
            "name": "t",
            "output": str(directory),
            "data": data.model_dump(mode="json"),
            "ranker": {"use": use, "options": options},
        }
    )


def told(data, use, directory, limits=None, **options):
    config = config_of(data, use, directory, **options)
    return [(finding.kind, finding.value) for finding in check_ranker(config, limits)]


def test_the_built_in_ranker_is_not_asked(data, tmp_path):
    assert told(data, "builtin", tmp_path) == []


def test_a_good_ranker_is_made_as_a_run_makes_it(data, tmp_path):
    assert told(data, f"{HERE}:Careful", tmp_path, bonus=1.0) == []
    assert "unexpected keyword argument 'malus'" in told(data, f"{HERE}:Careful", tmp_path, malus=1.0)[0][1]


@pytest.mark.parametrize(("use", "in_sample"), [("Careful", True), ("Parted", False)])
def test_trust_that_would_be_in_sample_is_said_where_a_gate_asks_for_it(data, tmp_path, use, in_sample):
    config = config_of(data, f"{HERE}:{use}", tmp_path)
    assert list(check_ranker(config)) == []
    gated = AdaGrpoObjective.model_validate({"gate": {"trust": {}}})
    told = list(check_ranker(config.model_copy(update={"objective": gated})))
    assert [finding.exit_code for finding in told] == [0] * in_sample
    assert all("objective.gate.trust is in sample" in finding.line for finding in told)


def test_a_class_that_cannot_leave_users_out_after_all_is_told(data, tmp_path):
    config = config_of(data, f"{HERE}:Parted", tmp_path, fails=True)
    gated = AdaGrpoObjective.model_validate({"gate": {"trust": {}}})
    (finding,) = check_ranker(config.model_copy(update={"objective": gated}))
    assert "failed to start" in finding.line and "users left out: fewer than none" in finding.line


def test_all_that_is_wrong_is_told_at_once(data, tmp_path):
    (version, score) = told(data, f"{HERE}:Forgetful", tmp_path)
    assert version == ("error", "version 3 (int)")
    assert score[0] == "error" and "score the ranker gave 0.0 to item -1" in score[1]


def test_replicas_that_differ_are_told(data, tmp_path):
    values = [value for _, value in told(data, f"{HERE}:Drawn", tmp_path)]
    assert [value.split(" ")[0] for value in values] == ["version", "score"]
    assert "two replicas answer differently" in values[1]


@pytest.mark.parametrize(
    ("use", "value"),
    [
        ("no_such_module:Ranker", "cannot be imported: No module named 'no_such_module'"),
        ("half_a_ranker:Ranker", "cannot be imported: SyntaxError"),
        (f"{HERE}:Nobody", "has no attribute 'Nobody'"),
    ],
)
def test_a_ranker_that_cannot_be_imported_is_told(data, tmp_path, use, value, monkeypatch):
    (tmp_path / "half_a_ranker.py").write_text("class Ranker(")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    ((kind, text),) = told(data, use, tmp_path)
    assert kind == "error" and value in text


def test_a_ranker_that_ends_the_process_is_told_by_its_last_words(data, tmp_path):
    assert told(data, f"{HERE}:Quitter", tmp_path) == [
        ("error", "ended the process that tried it (out of luck)")
    ]


def test_a_ranker_that_never_answers_is_ended_at_the_pools_limit(data, tmp_path):
    limits = Limits(call=1.0)
    assert told(data, f"{HERE}:Sleeper", tmp_path, limits) == [
        ("error", "no answer to three prompts within 1 s")
    ]


def test_a_ranker_that_is_long_in_loading_may_be_right(data, tmp_path):
    limits = Limits(load=1.0, call=9.0)
    assert told(data, f"{HERE}:SlowStarter", tmp_path, limits) == [
        ("warning", "was not tried: 1 s were not enough to load it")
    ]


def test_what_takes_long_is_told_before_its_limit(data, tmp_path, monkeypatch):
    monkeypatch.setattr(ranker, "TELL_S", 0.5)
    texts = []
    config = config_of(data, f"{HERE}:Sleeper", tmp_path)
    assert len(list(check_ranker(config, Limits(call=1.5), texts.append))) == 1
    assert (
        texts[-1] == f"ranker '{HERE}:Sleeper': trying to get an answer to three prompts, for 1.5 s at most"
    )
    assert len(texts) == len(set(texts)) <= 3


def is_running(pid):
    """Not ended, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_ranker_does_not_outlive_a_command_that_was_killed(data, tmp_path):
    """Nor does what the ranker has started."""
    config, pids = config_of(data, f"{HERE}:Parent", tmp_path, note=str(tmp_path / "pids")), tmp_path / "pids"
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = (
        "from sluice.services.config import RunConfig; from sluice.services.preflight.ranker import *; "
        f"list(check_ranker(RunConfig.model_validate_json(open({str(tmp_path / 'config.json')!r}).read())))"
    )
    with subprocess.Popen([sys.executable, "-c", command]) as process:
        wait_until(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
        process.kill()
    own, child = (int(pid) for pid in pids.read_text().split())
    wait_until(lambda: not is_running(own) and not is_running(child))


def wait_until(is_so, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_log_that_gives_no_sample_leaves_the_ranker_untried():
    outcome = Outcome(stage="data", error="the log is empty")
    (finding,) = judge_outcome("m:R", outcome, Limits(call=1.0))
    assert (finding.kind, finding.value) == ("warning", "was not tried: the log is empty")


def test_prepared_data_are_used_where_they_fit_the_config(data, tmp_path):
    """They are told from a sample by the codes: a sample numbers its items."""
    prepared = tiny_dataset(tmp_path / "t-seed0").settings
    assert told(prepared, f"{HERE}:Careful", tmp_path, codes=4) == []
    assert told(data, f"{HERE}:Careful", tmp_path, codes=1) == []


def test_a_sample_is_a_data_set_with_the_logs_columns(data, tmp_path):
    dataset = sample_dataset(data, tmp_path)
    assert isinstance(dataset, Dataset) and 0 < dataset.users <= 40
    assert dataset.items == 20 and dataset.attribute_names == ["kind=k0", "kind=k1", "kind=k2"]
    assert dataset.ratings is not None and dataset.clicks is not None and dataset.dwell_seconds is not None
    assert dataset.reward_column == "rating"


def test_a_sample_of_a_log_without_a_catalogue(data, tmp_path):
    source = data.source.model_copy(
        update={"catalogue": None, "catalogue_columns": type(data.source.catalogue_columns)()}
    )
    dataset = sample_dataset(data.model_copy(update={"source": source}), tmp_path)
    assert dataset.items == 20 and dataset.attribute_names == []


def test_a_sample_takes_the_rows_that_the_settings_take(tmp_path):
    """Times in no unit, rows without a click that took place, ids with spaces around them."""
    rows = {
        "user_id": ["u"] * 4 + ["v"] * 4,
        "item_id": ["a", "b", "c", "d"] * 2,
        "timestamp": [1_700_000_000, 5, 9_000_000_000, 6] * 2,
        "click": [0] * 8,
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    pq.write_table(pa.table({"item_id": [" a", "b", "c", "d "]}), tmp_path / "items.parquet")
    source = {
        "type": "table",
        "interactions": [str(tmp_path / "log.parquet")],
        "columns": {"click": "click"},
        "unclicked": "interaction",
        "timestamp_unit": "none",
        "catalogue": str(tmp_path / "items.parquet"),
    }
    (tmp_path / "sample").mkdir()
    dataset = sample_dataset(DataSettings.model_validate({"source": source}), tmp_path / "sample")
    assert (dataset.users, dataset.items, len(dataset.sequence)) == (2, 4, 8)


@pytest.mark.parametrize("says", [True, False], ids=["says", "empty"])
def test_a_sample_knows_how_items_were_shown_and_the_users(tmp_path, says):
    """Of 50 users with the same histories the one that the table knows is in the sample."""
    rows = [
        (f"u{user:02d}", f"i{item}", item, 0.5 if says else None, item + 1)
        for user in range(50)
        for item in range(4)
    ]
    names = ("user_id", "item_id", "timestamp", "chance", "place")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "log.parquet")
    pq.write_table(pa.table({"user_id": ["u49"], "age": [30]}), tmp_path / "users.parquet")
    source = {
        "type": "table",
        "interactions": [str(tmp_path / "log.parquet")],
        "timestamp_unit": "none",
        "columns": {"propensity": "chance", "slate_position": "place"},
        "users": str(tmp_path / "users.parquet"),
        "user_columns": {"attributes": ["age"]},
    }
    (tmp_path / "sample").mkdir()
    dataset = sample_dataset(DataSettings.model_validate({"source": source}), tmp_path / "sample")
    assert dataset.users == 40 and "u49" in dataset.user_ids
    assert dataset.user_attributes[1] == ["age=30"]
    shown = (dataset.propensities, dataset.slate_positions)
    assert all(values is not None for values in shown) if says else shown == (None, None)


def test_the_questions_are_real_prompts_of_different_lengths(tmp_path):
    made = tiny_dataset(tmp_path / "made").settings
    (tmp_path / "sample").mkdir()
    dataset = sample_dataset(made, tmp_path / "sample")
    questions = draw_questions(dataset)
    lengths = [len(history) for history in questions.histories]
    assert lengths[0] == 1 and lengths == sorted(lengths) and lengths[-1] == 6
    assert questions.later_item == 20 and questions.candidates.shape == (3, 16)
    filled = (questions.candidates >= 0).sum(axis=1).tolist()
    assert filled == [16, 12, 8]
    for row, count in zip(questions.candidates, filled, strict=True):
        assert len(np.unique(row[:count])) == count and (row[count:] == -1).all()
