"""A run under faults by the command that a user types. Other tests have the kinds that are not here: killed
rollout actors, rankers, learners and queues (`tests/ray/test_deterministic.py`), stopped ones
(`test_supervisor.py`), and Ray Train's controller (`test_failures.py`).
"""

import json
import sys

import pytest

from tests.e2e.conftest import run

KINDS = (
    "kill weight board",
    "kill driver",
    "damage checkpoint",
    "ranker raises",
    "ranker crashes",
    "ranker is slow",
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_a_deterministic_run_under_faults_ends_with_the_weights_of_one_left_alone(job, environment, tmp_path):
    command = [sys.executable, "-m", "sluice", "chaos", "--config", str(job), "--output", str(tmp_path)]
    settings = ["deterministic=true", "rollout.engine={type: tree}", "learner.evaluate_every=6"]
    options = ["--faults", str(len(KINDS)), "--kinds", ", ".join(KINDS)]
    output = run([*command, *options, *(part for text in settings for part in ("--set", text))], environment)
    assert "sound: nothing lost, doubled or damaged" in output
    outcome = json.loads((tmp_path / "chaos.json").read_text())
    assert sorted(hit["fault"] for hit in outcome["hits"]) == sorted(KINDS)
    assert all(hit["trained_s"] is not None for hit in outcome["hits"])
    assert outcome["same_weights"]
    assert outcome["metrics"]["disturbed"] == outcome["metrics"]["undisturbed"]
    assert outcome["starts"] == 2
