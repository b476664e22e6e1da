"""What a run's data must be, worked out again from the raw log: sequences, parts, examples."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

PARTS = ("pretrain", "fresh", "valid", "test")
_MOVIELENS = "recbole/dataset_example/ml-100k/ml-100k.inter"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table."""

    what: str
    values: int
    differ: int
    largest: float = 0.0  # difference
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The artefacts of a run: settings, sequences of item rows by user row, examples, codes."""

    directory: Path
    config: dict[str, Any]
    data: dict[str, Any]  # settings of the data
    summary: dict[str, Any]
    items: list[str]
    codes: list[tuple[int, ...]]
    users: list[str]
    sequences: list[list[int]]
    times: list[list[int]]
    stored: set[tuple[int, int, str]]  # user, position, part
    labels: list[list[str]] = field(default_factory=list)  # the part of every interaction, worked out here

    def examples(self, part: str) -> list[tuple[int, int]]:
        """User and position of the targets of a part, by the definition."""
        return [
            (user, position)
            for user, labels in enumerate(self.labels)
            for position, label in enumerate(labels)
            if position and label == part
        ]

    def before(self, part: str) -> list[list[int]]:
        """The sequences without what lies in a part or after it."""
        last = PARTS.index(part)
        return [
            [item for item, label in zip(sequence, labels, strict=True) if PARTS.index(label) < last]
            for sequence, labels in zip(self.sequences, self.labels, strict=True)
        ]


def open_run(directory: Path) -> Run:
    """Read what the run left."""
    import yaml

    data = directory / "data"
    frames = {
        name: pd.read_parquet(data / f"{name}.parquet")
        for name in ("users", "catalogue", "interactions", "examples")
    }
    users = frames["users"]["user_id"].tolist()
    sequences: list[list[int]] = [[] for _ in users]
    times: list[list[int]] = [[] for _ in users]
    rows = frames["interactions"]
    for user, item, time in zip(rows["user"], rows["item"], rows["timestamp"], strict=True):
        sequences[user].append(int(item))
        times[user].append(int(time))
    names = {"train": "pretrain"}  # the pretrain part of the release before
    examples = frames["examples"]
    settings = json.loads((data / "manifest.json").read_text())["settings"]
    return Run(
        directory=directory,
        config=yaml.safe_load((directory / "config.yaml").read_text()),
        data=settings,
        summary=json.loads((directory / "summary.json").read_text()),
        items=frames["catalogue"]["item_id"].tolist(),
        codes=[tuple(int(code) for code in codes) for codes in frames["catalogue"]["codes"]],
        users=users,
        sequences=sequences,
        times=times,
        stored={
            (int(user), int(position), names.get(part, part))
            for user, position, part in zip(
                examples["user"], examples["position"], examples["split"], strict=True
            )
        },
        labels=label(times, settings["split"]),
    )


def label(times: list[list[int]], split: dict[str, Any]) -> list[list[str]]:
    """The part of every interaction of every user, whose times are in order."""
    if split["type"] == "leave_last_two_out":
        return [(["pretrain"] * (len(own) - 2) + ["valid", "test"])[-len(own) :] for own in times]
    shares = {name: Fraction(str(split.get(f"{name}_share", 0))) for name in PARTS[1:]}
    begins = [1 - shares["fresh"] - shares["valid"] - shares["test"], 1 - shares["valid"] - shares["test"]]
    begins.append(1 - shares["test"])
    if split["type"] == "fresh" and split.get("by", "user") == "user":
        return [
            [
                _part(position, [math.floor(len(own) * share) for share in begins])
                for position in range(len(own))
            ]
            for own in times
        ]
    if split["type"] in ("fresh", "global_time") and not split.get("valid_from"):
        ordered = sorted(time for own in times for time in own)
        cuts = [ordered[math.floor(len(ordered) * share)] for share in begins]
        return [[_part(time, cuts) for time in own] for own in times]
    raise SystemExit(f"this audit knows no split {split}")


def _part(value: int, begins: list[int]) -> str:
    return PARTS[sum(value >= begin for begin in begins)]


def raw_log(run: Run) -> pd.DataFrame | None:
    """The raw log, in file order, with columns user_id, item_id, timestamp; None where it is gone."""
    source = run.data["source"]
    if source["type"] == "movielens-100k":
        path = Path(str(metadata.distribution("recbole").locate_file(_MOVIELENS)))
        table = pd.read_csv(path, sep="\t", dtype=str)
        table.columns = [name.partition(":")[0] for name in table.columns]
        return table.assign(timestamp=table["timestamp"].astype(float).astype(int))
    columns = {source["columns"][name]: name for name in ("user_id", "item_id", "timestamp")}
    tables = []
    for name in source["interactions"]:
        path = next((path for path in (run.directory / name, Path(name)) if path.is_file()), None)
        if path is None:
            return None
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        tables.append(table.rename(columns=columns)[list(columns.values())])
    return pd.concat(tables, ignore_index=True).astype({"user_id": str, "item_id": str})


def check_data(run: Run) -> list[Check]:
    """Sequences against the raw log, and examples against the split."""
    checks = [_check_sequences(run)]
    expected = {(user, place, part) for part in PARTS for user, place in run.examples(part)}
    wrong = expected ^ run.stored
    example = f"first: user, position, part {min(wrong)}" if wrong else ""
    checks.append(Check(what="examples by split", values=len(expected), differ=len(wrong), note=example))
    shared = len(run.codes) - len(set(run.codes))
    checks.append(Check(what="codes tell items apart", values=len(run.codes), differ=shared))
    return checks


def _check_sequences(run: Run) -> Check:
    what = "sequences from the raw log"
    log = raw_log(run)
    if log is None:
        return Check(what=what, values=0, differ=0, note="NOT CHECKED: the raw log is gone")
    expected: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for user, item, time in zip(log["user_id"], log["item_id"], log["timestamp"], strict=True):
        expected[user].append((item, int(time)))
    least = run.data["min_interactions"]
    kept = {
        user: sorted(own, key=lambda event: event[1]) for user, own in expected.items() if len(own) >= least
    }
    stored = {
        user: [(run.items[item], time) for item, time in zip(sequence, times, strict=True)]
        for user, sequence, times in zip(run.users, run.sequences, run.times, strict=True)
    }
    differ = 0
    for user in kept.keys() | stored.keys():
        ours, theirs = kept.get(user, []), stored.get(user, [])
        differ += sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return Check(what=what, values=sum(map(len, kept.values())), differ=differ)
