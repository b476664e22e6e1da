"""Learner on one node, rollouts on the other: the same results contract."""

import json
import sys

import pytest

from tests.e2e.conftest import run
from tests.e2e.test_job import metrics_of, summary_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_rollouts_and_learner_on_different_nodes(job, environment):
    overrides = ["name=apart", "cluster.learner_resource=learner", "cluster.rollout_resource=rollout"]
    output = run([sys.executable, "-m", "tests.e2e.two_nodes", str(job), *overrides], environment)
    nodes = json.loads(next(line for line in output.splitlines() if line.startswith('{"learner"')))
    directory = job.parent / "runs" / "apart-seed0"
    summary = summary_of(directory)

    assert nodes["learner"] != nodes["rollout"]
    assert [start["node"] for start in metrics_of(directory, "start")] == [nodes["learner"]]
    assert {name: counts["node"] for name, counts in summary["rollouts"].items()} == {
        "rollout-0": nodes["rollout"]
    }

    counts = summary["accounting"]
    assert counts["trained"] == 8 * 6
    assert counts["issued"] == counts["trained"] + counts["stale"] + counts["invalid"] + counts["in_flight"]
    assert summary["rollouts"]["rollout-0"]["swaps"] >= 1
    assert {"start", "control", "best", "last", "popularity", "itemknn"} <= set(summary["metrics"])
    assert (directory / "report.html").exists()
