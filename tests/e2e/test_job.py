"""The job as a user runs it: submitted, followed, resumed; every file of the run directory as it is
promised.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.learner.policy.policy import load_policy
from sluice.services.submit.head import start_head
from tests.e2e.conftest import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

POLICIES = ("start", "control", "best", "last")


def patiently(submit):
    """As `sluice submit` does: a new head's job server answers before there is a node agent to start a
    job.
    """
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return submit()
        except AssertionError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline_s:
                raise


def summary_of(run_directory: Path) -> dict:
    return json.loads((run_directory / "summary.json").read_text())


def metrics_of(run_directory: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def submitted(job, environment) -> tuple[Path, str]:
    output = run([sys.executable, "-m", "sluice", "submit", "--config", str(job)], environment)
    return job.parent / "runs" / "tiny-seed0", output


def test_the_summary_has_every_promised_field(submitted):
    directory, _ = submitted
    summary = summary_of(directory)
    assert (summary["objective"], summary["dataset"], summary["seed"]) == ("adagrpo", "tiny", 0)
    assert summary["decode"]["kind"] == "sample"
    for row in (*POLICIES, "popularity", "itemknn"):
        assert {"hr@10", "ndcg@10", "mrr", "hallucination"} <= set(summary["metrics"][row])
        assert summary["metrics"][row]["users"] == 24
    assert set(summary["gate"]) == {"rate", "difficulty", "discriminability", "trusted"}
    assert summary["gate"]["trusted"] is None  # no gate asks for trust
    assert summary["throughput"]["learner_steps"] == 8
    assert summary["throughput"]["groups_per_s"] > 0
    assert {"prepare", "pretrain", "fit-ranker", "control", "engines", "train", "judge"} <= set(
        summary["wall_s"]
    )


def test_every_prompt_is_accounted_for(submitted):
    counts = summary_of(submitted[0])["accounting"]
    assert counts["trained"] == 8 * 6
    assert counts["issued"] == counts["trained"] + counts["stale"] + counts["invalid"] + counts["in_flight"]
    assert counts["invalid"] == 0


def test_no_actor_of_ours_is_restarted_from_objects_that_may_be_lost(submitted):
    # Ray says so once per process. Its own watcher is started in a way that we cannot change.
    told = [line for line in submitted[1].splitlines() if "constructor arguments in the object store" in line]
    assert [line for line in told if "'PreemptionWatcher'" not in line] == []


def test_weights_went_round(submitted):
    steps = metrics_of(submitted[0], "step")
    assert [step["step"] for step in steps] == list(range(1, 9))
    assert steps[-1]["learner_version"] == 4
    assert max(step["staleness"] for step in steps) <= 2
    rollouts = summary_of(submitted[0])["rollouts"]
    assert rollouts["rollout-0"]["swaps"] >= 1


def test_the_time_of_every_component_is_told(submitted):
    summary, steps = summary_of(submitted[0]), metrics_of(submitted[0], "step")
    assert set(summary["time"]) == {"learner-0", "ranker-0", "rollout-0"}
    learner = summary["time"]["learner-0"]
    assert {"wait_batch", "update", "publish", "validate", "checkpoint"} <= set(learner)
    assert all(0 <= step["idle_s"] <= step["step_s"] for step in steps)
    assert sum(step["step_s"] for step in steps) <= sum(learner.values()) <= summary["wall_s"]["train"]
    assert summary["time"]["rollout-0"]["generate"] > 0 < summary["time"]["ranker-0"]["score"]


def test_the_run_directory_is_complete(submitted):
    directory, output = submitted
    for name in ("config.yaml", "manifest.json", "report.html", "tensorboard", "metrics-control.jsonl"):
        assert (directory / name).exists()
    assert str(directory / "report.html") in output
    assert "best checkpoint" in output
    assert "Reporting training result" not in output  # Ray Train's, with all metrics of every checkpoint
    for policy in ("policy", "best", "last", "control"):
        assert load_policy(directory / policy).layout.levels == 3
    assert [one["epoch"] for one in json.loads((directory / "policy" / "validations.json").read_text())][
        -1
    ] >= 1
    kept = [place for place in (directory / "checkpoints" / "train").iterdir() if place.is_dir()]
    assert len(kept) == 2  # learner.keep_last


def test_a_second_run_into_the_same_place_is_refused(submitted, job, environment):
    with pytest.raises(AssertionError, match="already holds a post-training: give --resume"):
        run([sys.executable, "-m", "sluice", "train", "--config", str(job)], environment)
    assert summary_of(submitted[0])["throughput"]["learner_steps"] == 8


@pytest.fixture(scope="module")
def changed(submitted, environment) -> Dataset:
    """The data of the run, after a push that adds one item to its catalogue and retires another."""
    directory, _ = submitted
    data = Dataset.open(directory / "data")
    taken = {tuple(codes) for codes in data.codes.tolist()}
    free = next(codes for codes in np.ndindex(*data.level_sizes) if codes not in taken)
    (directory / "new.csv").write_text(f"item_id,codes\nbrand-new,{' '.join(map(str, free))}\n")
    (directory / "gone.csv").write_text(f"item_id\n{data.item_ids[0]}\n")
    files = ["--add", str(directory / "new.csv"), "--retire", str(directory / "gone.csv")]
    command = [sys.executable, "-m", "sluice", "catalogue", "push", str(directory), *files]
    assert f"catalogue version 1: {data.items} items, 1 retired" in run(command, environment)
    with pytest.raises(AssertionError, match="is retired already"):
        run(command, environment)
    return data


def test_a_job_submitted_by_hand_resumes(submitted, changed, job, environment):
    """Ray's own command line, against a head that is already running; with the catalogue as it is by now."""
    directory, _ = submitted
    before = metrics_of(directory, "step")
    client = environment | {"RAY_AUTH_MODE": "token"}
    entrypoint = [
        "python",
        "-m",
        "sluice",
        "train",
        "--config",
        str(job),
        "--resume",
        "--set",
        "learner.steps=12",
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in client.items():
            patch.setenv(name, value)
        head = start_head(lambda line: None)
        try:
            if hasattr(os, "SCHED_BATCH"):  # inherited by what it starts
                assert os.sched_getscheduler(head.process.pid) == os.SCHED_BATCH
            submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.url]
            excludes = json.dumps({"excludes": [".venv", ".git", "runs"]})
            command = [*submit, "--working-dir", ".", "--runtime-env-json", excludes, "--", *entrypoint]
            said = patiently(lambda: run(command, client))
            known = Path(client["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"  # where others find a head
            assert known.read_text().strip() == head.address
        finally:
            head.stop()
    assert not known.exists()
    steps = metrics_of(directory, "step")
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert steps[:8] == before
    assert f"catalogue: version 1 with {changed.items} items, 1 retired" in said
    assert summary_of(directory)["rollouts"]["rollout-0"]["catalogue_version"] == 1
    counts = summary_of(directory)["accounting"]
    assert counts["trained"] == 12 * 6
    assert counts["issued"] == counts["trained"] + counts["stale"] + counts["invalid"] + counts["in_flight"]
