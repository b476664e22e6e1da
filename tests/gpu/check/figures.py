"""The figures of a step, from the files that its command wrote; what they are, the command's own docs say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.gpu.check.step import StepError

Figures = Callable[[Path], dict[str, Any]]


def of_tests(folder: Path) -> dict[str, Any]:
    """Counts from pytest's `junit.xml`. That no test passed is a failure: all may have been skipped."""
    suites = list(ElementTree.parse(folder / "junit.xml").getroot().iter("testsuite"))
    count = {name: sum(int(suite.attrib[name]) for suite in suites) for name in ("tests", "skipped")}
    passed = count["tests"] - count["skipped"]
    if passed == 0:
        raise StepError(f"no test ran; {count['skipped']} were skipped")
    return {"passed": passed, "skipped": count["skipped"]}


def of_json(folder: Path) -> dict[str, Any]:
    """Everything in `figures.json`, which the check's own probes write."""
    return json.loads((folder / "figures.json").read_text())


def of_bench(*names: str, rows: tuple[str, ...] = ()) -> Figures:
    """From `bench.json`: `names` of the answer, and of `rows` the lowest and the highest among its rows."""

    def read(folder: Path) -> dict[str, Any]:
        bench = json.loads((folder / "bench.json").read_text())
        figures = {name: bench[name] for name in names}
        for name in rows:
            values = [row[name] for row in bench["rows"] if row[name] is not None]
            figures[name] = [min(values), max(values)]
        return figures

    return read


def of_run(steps: int) -> Figures:
    """From the `summary.json` of a run in `runs/`; it must have made `steps` steps of the learner."""

    def read(folder: Path) -> dict[str, Any]:
        (path,) = (folder / "runs").glob("*/summary.json")
        summary = json.loads(path.read_text())
        made = summary["throughput"]["learner_steps"]
        if made != steps:
            raise StepError(f"the run made {made} steps of {steps}")
        return {
            "learner_steps": made,
            "groups_per_s": summary["throughput"]["groups_per_s"],
            "train_s": summary["wall_s"]["train"],
            "hr@10_last": summary["metrics"]["last"]["hr@10"],
        }

    return read
