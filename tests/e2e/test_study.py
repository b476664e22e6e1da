"""A small study on a real cluster of its own, by the command that a user types."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from tests.e2e.conftest import run


def test_a_study_ends_with_its_table_and_page_and_has_nothing_left_to_do(job, environment, tmp_path):
    study = {
        "name": "small",
        "output": str(tmp_path),
        "seeds": [0],
        "sets": {"tiny": {"config": str(job)}},
        "arms": {
            "nll": {"set": ["objective={type: nll}"]},
            "gate": {"set": ["objective={type: adagrpo, gate: {tau: 0.5, parts: difficulty}}"]},
            "random": {"rate_of": "gate"},
        },
        "against": ["nll"],
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "sluice", "study", str(file)]
    output = run(command, environment)
    page = Path(output.strip().splitlines()[-1].split()[-1])
    assert page == tmp_path / "small" / "report.html" and "gate" in page.read_text()
    rows = pq.read_table(tmp_path / "small" / "results.parquet").to_pylist()
    assert {row["arm"] for row in rows} == {"start", "nll", "gate", "random"}
    assert all(row["commit"] for row in rows)
    rate = next(row["gate_rate"] for row in rows if row["arm"] == "gate")
    assert 0 < rate < 1
    row = (tmp_path / "small" / "tiny-seed0" / "arms" / "gate" / "row.json").stat().st_mtime_ns
    run(command, environment)
    assert (tmp_path / "small" / "tiny-seed0" / "arms" / "gate" / "row.json").stat().st_mtime_ns == row
