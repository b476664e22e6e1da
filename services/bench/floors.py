"""The regression gate: the quick sizes of the benches that need no engine, each ratio against a generous
floor.

The floors are a third of what was measured at these sizes, or less, and both sides of a ratio run on the same
machine in turns, so a slow or busy machine passes and a change that loses an algorithm does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sluice.catalog.errors import RunError
from sluice.services.bench.harness import BenchOptions, bench_module, print_note

REPEATS = 3
# bench -> floor of `speedup` in each row, chosen by the row's fields
FLOORS: dict[str, Sequence[tuple[Mapping[str, float], float]]] = {
    "trie": (({"items": 100_000}, 12.0),),
    "learner": (({"K": 16, "T": 50}, 2.5), ({"K": 16, "T": 200}, 4.0)),
    "beam": (({"W": 20}, 4.0), ({"W": 50}, 7.0)),
}


def run(options: BenchOptions) -> dict[str, Any]:
    """Every guarded row with its speedup and its floor.

    Raises:
        RunError: a ratio is below its floor; the message has each of them.
    """
    quick = replace(options, quick=True, repeats=min(options.repeats, REPEATS))
    rows = []
    for name in FLOORS:
        print_note(f"floors: {name}")
        rows += guarded_rows(name, bench_module(name).run(quick)["rows"])
    below = [row for row in rows if row["speedup"] < row["floor"]]
    if below:
        raise RunError(
            "slower than the regression gate allows: "
            + "; ".join(
                f"{row['bench']} {row['row']}: {row['speedup']:.1f}x, floor {row['floor']:g}x"
                for row in below
            )
        )
    return {"rows": rows}


def guarded_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one bench that have a floor.

    Raises:
        RunError: a guarded row is missing.
    """
    guarded = []
    for fields, floor in FLOORS[name]:
        alike = [row for row in rows if all(row.get(field) == value for field, value in fields.items())]
        if len(alike) != 1:
            raise RunError(
                f"bench {name} has {len(alike)} rows with {dict(fields)}, the regression gate wants one"
            )
        guarded.append({"bench": name, "row": dict(fields), "speedup": alike[0]["speedup"], "floor": floor})
    return guarded
