"""What a study has so far: the directories of its arms, and the Parquet tables that they are gathered in.

<study>/<set>-seed<seed>/                 data, start and ranker, as of a run
<study>/<set>-seed<seed>/judge/           the reward model that judges the arms
<study>/<set>-seed<seed>/prompts/         what the gate says of the test prompts
<study>/<set>-seed<seed>/arms/<arm>/      best/, last/, metrics.jsonl, row.json, <checkpoint>-<split>.parquet
<study>/results.parquet                   one row for each data set, seed, arm and checkpoint
<study>/report.html, report.md            written from these
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.errors import RunError
from sluice.services.paths import RunPaths
from sluice.services.study.settings import START, StudyConfig, set_config

ROW = "row.json"
CHECKPOINTS = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An arm on a data set with a seed."""

    of_set: str
    seed: int
    arm: str
    directory: Path

    @property
    def is_done(self) -> bool:
        """Whether it was trained and judged."""
        return (self.directory / ROW).is_file()

    def examples(self, checkpoint: str, split: str) -> pa.Table:
        """Each example of a split, as `judge_policy` left it."""
        return pq.read_table(self.directory / f"{checkpoint}-{split}.parquet")

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the table says of it, one row for each checkpoint; nothing while it is not done."""
        if self.is_done:
            told = json.loads((self.directory / ROW).read_text())
            for checkpoint in CHECKPOINTS:
                means = told["checkpoints"][checkpoint]
                known = {"set": self.of_set, "seed": self.seed, "arm": self.arm, "checkpoint": checkpoint}
                yield known | told["cost"] | told["origin"] | means


def paths_of(study: StudyConfig, of_set: str, seed: int) -> RunPaths:
    """Where data, start and ranker of a data set and a seed lie."""
    return RunPaths.of(set_config(study, of_set, seed))


def prompts_directory(study: StudyConfig, of_set: str, seed: int) -> Path:
    """Where `sluice.services.study.start_rollouts` leaves what rollouts of the test prompts say."""
    return paths_of(study, of_set, seed).root / "prompts"


def judge_directory(study: StudyConfig, of_set: str, seed: int) -> Path:
    """Where the reward model that judges the arms lies (`sluice.services.study.judges.reward`)."""
    return paths_of(study, of_set, seed).root / "judge"


def cells_of(study: StudyConfig) -> list[Cell]:
    """All that the study consists of; the start is an arm of no steps."""
    return [
        Cell(of_set=of_set, seed=seed, arm=arm, directory=root / "arms" / arm)
        for of_set in study.sets
        for seed in study.seeds
        for root in (paths_of(study, of_set, seed).root,)
        for arm in (START, *study.arms)
    ]


def gather(study: StudyConfig) -> Path:
    """Write `results.parquet` of what is done so far; returns its path.

    Raises:
        RunError: nothing is done yet.
    """
    rows = [row for cell in cells_of(study) for row in cell.rows()]
    if not rows:
        raise RunError(f"the study in {study.directory} has no arm that is done: run `sluice study` first")
    names = dict.fromkeys(name for row in rows for name in row)
    path = study.directory / "results.parquet"
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def status_lines(study: StudyConfig) -> list[str]:
    """How much of each data set and arm is done, a line each."""
    cells = cells_of(study)
    done = sum(cell.is_done for cell in cells)
    lines = [f"{study.directory}: {done} of {len(cells)} done"]
    for of_set in study.sets:
        for arm in (START, *study.arms):
            seeds = [cell.seed for cell in cells if (cell.of_set, cell.arm) == (of_set, arm) and cell.is_done]
            missing = sorted(set(study.seeds) - set(seeds))
            left = f"seeds {', '.join(map(str, missing))} are left" if missing else "done"
            lines.append(f"{of_set}  {arm}  {left}")
    return lines
