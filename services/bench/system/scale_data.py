"""`sluice prepare` over logs of growing size: seconds by stage, and the most memory that it held.

The logs are synthetic. A twentieth of the rows are users, with activities that are log-normal, and a
hundredth are items, with popularities by a power law; seven rows in ten are of the tenth of the catalogue
that their user likes. So 20 million rows have a million users and 200,000 items. Each size is prepared in a
process of its own, with semantic IDs fitted and otherwise the defaults.

`prepare` works in one process on one thread, so there is no figure for two.

seconds: by stage. read: cleaning included; sort: by user, with the rules of what an event is; split: examples
    and what stands together; vectors and codes: the semantic IDs; other: opening and hashing, the catalogue.
peak_mb: the largest resident memory of the process, with its imports (`imports_mb`).
growth: exponents of a power of the rows, by least squares on logarithms. 1: twice the rows, twice as much.
"""

import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.settings import DataSettings, TableSource
from sluice.catalog.errors import RunError
from sluice.services.bench.harness import BenchOptions, in_turn, print_note

ROWS = (100_000, 200_000, 400_000, 800_000)
QUICK_ROWS = (10_000, 20_000, 40_000)
_ROWS_OF_USER, _ROWS_OF_ITEM = 20, 100
_TASTES, _OWN = 10, 0.7
_CHUNK_ROWS = 1_000_000
_START_S, _DAY_S = 1_500_000_000, 86_400


def run(options: BenchOptions) -> dict[str, Any]:
    """A row per size, and how time and memory grow with the rows."""
    sizes = options.rows or (QUICK_ROWS if options.quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        scratch = Path(name)
        logs = {rows: scratch / f"log-{rows}.parquet" for rows in sizes}
        for rows, log in logs.items():
            write_log(log, rows, options.seed)
        runs: dict[int, list[dict[str, Any]]] = {rows: [] for rows in sizes}
        for number in range(1 if options.quick else options.repeats):
            for rows in in_turn(list(sizes), number):
                runs[rows].append(prepare_apart(logs[rows], scratch / "data"))
                print_note(f"{rows} rows: {runs[rows][-1]['total_s']:.1f} s")
    table = [_middle(rows, runs[rows]) for rows in sizes]
    return {"rows": table, "growth": fit_growth(table)}


def write_log(path: Path, rows: int, seed: int) -> None:
    """A log of `rows`, in no order, a chunk at a time."""
    rng = np.random.default_rng(seed)
    users, items = max(2, rows // _ROWS_OF_USER), max(_TASTES, rows // _ROWS_OF_ITEM)
    active = np.cumsum(rng.lognormal(0, 1, users))
    popular = np.cumsum(np.arange(1, items + 1) ** -0.8)
    taste = rng.integers(0, _TASTES, users)
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(path, schema) as file:
        for first in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - first)
            user = np.minimum(np.searchsorted(active, rng.random(count) * active[-1]), users - 1)
            item = np.minimum(np.searchsorted(popular, rng.random(count) * popular[-1]), items - 1)
            own = np.minimum(item // _TASTES * _TASTES + taste[user], items - 1)
            item = np.where(rng.random(count) < _OWN, own, item)
            moment = _START_S + rng.integers(0, 1000 * _DAY_S, count)
            texts = [pa.array(ids).cast(pa.string()) for ids in (user, item)]
            file.write_table(pa.table([*texts, pa.array(moment)], schema=schema))


def prepare_apart(log: Path, output: Path) -> dict[str, Any]:
    """Prepare a log in a new process; what it took.

    Raises:
        RunError: the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_prepare, args=(log, output, theirs))
    child.start()
    theirs.close()
    try:
        measured: dict[str, Any] = ours.recv()
    except EOFError:
        child.join()
        raise RunError(
            f"prepare of {log.name} ended with code {child.exitcode} and without an answer"
        ) from None
    child.join()
    return measured


def _prepare(log: Path, output: Path, answer: Connection) -> None:
    from sluice.services.stages.prepare import prepare_data

    imports_mb = _peak_mb()
    settings = DataSettings(name="scale-data", source=TableSource(interactions=(str(log),)))
    started_s = time.perf_counter()
    prepared = prepare_data(settings, output)
    counts = prepared.manifest["counts"]
    answer.send(
        {
            **{name: counts[name] for name in ("users", "items", "interactions")},
            "total_s": time.perf_counter() - started_s,
            "seconds": prepared.seconds,
            "peak_mb": _peak_mb(),
            "imports_mb": imports_mb,
        }
    )


def _peak_mb() -> float:
    # Not getrusage, which counts the memory of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _middle(rows: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of one size."""
    seconds = {
        stage: statistics.median(run["seconds"][stage] for run in runs) for stage in runs[0]["seconds"]
    }
    total_s = statistics.median(run["total_s"] for run in runs)
    return {
        "rows": rows,
        "users": runs[0]["users"],
        "items": runs[0]["items"],
        "total_s": round(total_s, 2),
        "rows_per_s": round(rows / total_s),
        "seconds": {
            **{stage: round(value, 2) for stage, value in seconds.items()},
            "other": round(max(0.0, total_s - sum(seconds.values())), 2),
        },
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        "imports_mb": round(max(run["imports_mb"] for run in runs)),
    }


def fit_growth(table: list[dict[str, Any]]) -> dict[str, float | None]:
    """Exponents of the time and of the memory above the imports; None with fewer than two sizes."""
    if len(table) < 2:
        return {"total_s": None, "peak_mb": None}
    rows = np.log([row["rows"] for row in table])
    measures = {
        "total_s": [row["total_s"] for row in table],
        "peak_mb": [row["peak_mb"] - row["imports_mb"] for row in table],
    }
    return {
        name: round(float(np.polyfit(rows, np.log(values), 1)[0]), 2) for name, values in measures.items()
    }
