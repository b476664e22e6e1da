"""The regression gate finds its rows, and fails on a ratio below its floor."""

from types import SimpleNamespace

import pytest

from sluice.catalog.errors import RunError
from sluice.services.bench import floors
from sluice.services.bench.harness import BenchOptions


def rows(trie=60.0):
    return {
        "trie": [{"items": 1_000, "speedup": 1.0}, {"items": 100_000, "speedup": trie}],
        "learner": [{"K": 16, "T": 50, "speedup": 8.0}, {"K": 16, "T": 200, "speedup": 15.0}],
        "beam": [{"W": 20, "speedup": 14.0}, {"W": 50, "speedup": 26.0}, {"W": 256, "speedup": None}],
    }


def run(monkeypatch, found):
    seen = []

    def module(name):
        return SimpleNamespace(run=lambda options: seen.append(options) or {"rows": found[name]})

    monkeypatch.setattr(floors, "bench_module", module)
    return floors.run(BenchOptions(repeats=9)), seen


def test_every_floor_is_held_against_its_row(monkeypatch):
    result, seen = run(monkeypatch, rows())
    assert [(row["bench"], row["speedup"]) for row in result["rows"]] == [
        *(("trie", 60.0), ("learner", 8.0), ("learner", 15.0), ("beam", 14.0), ("beam", 26.0))
    ]
    assert all(options.quick and options.repeats == 3 for options in seen)


def test_a_ratio_below_its_floor_fails(monkeypatch):
    with pytest.raises(RunError, match=r"trie \{'items': 100000\}: 2\.0x, floor 12x$"):
        run(monkeypatch, rows(trie=2.0))


def test_a_missing_row_fails(monkeypatch):
    with pytest.raises(RunError, match=r"bench beam has 0 rows with \{'W': 50\}"):
        run(monkeypatch, {**rows(), "beam": [{"W": 20, "speedup": 14.0}]})
