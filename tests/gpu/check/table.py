"""The table of results: as JSON, as Markdown, and on the terminal, written anew after every step."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.gpu.check.step import Result

COLUMNS = ("step", "outcome", "seconds", "figures", "what it shows, or why it did not")
COLOURS = {"passed": "green", "failed": "red", "out of time": "yellow", "not run": "yellow"}


class Record:
    """All results so far, in the order of the steps, on disk as they come. Threads may add at once."""

    def __init__(self, output: Path, facts: Mapping[str, Any], expected: Sequence[Result]) -> None:
        self._output, self._facts = output, dict(facts)
        self._results = {result.name: result for result in expected}
        self._lock = threading.Lock()
        self._write()

    @property
    def results(self) -> list[Result]:
        """One for each step, also of those that have not run."""
        return list(self._results.values())

    def add(self, result: Result) -> None:
        """Take the result of one step."""
        with self._lock:
            self._results[result.name] = result
            self._write()

    def end(self, seconds: float) -> None:
        """Note how long all of it took."""
        with self._lock:
            self._facts["seconds"] = round(seconds, 1)
            self._write()

    def _write(self) -> None:
        answer = {
            "verdict": verdict(self.results),
            **self._facts,
            "steps": [asdict(result) for result in self.results],
        }
        replace(self._output / "gpu-check.json", json.dumps(answer, indent=1) + "\n")
        replace(self._output / "gpu-check.md", markdown(self._facts, self.results))


def replace(path: Path, text: str) -> None:
    """Write the whole file or leave the old one."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text)
    os.replace(new, path)


def verdict(results: Sequence[Result]) -> str:
    """`passed` when every step has; else how many did, and which others ended how."""
    others = [f"{result.name} {result.outcome}" for result in results if result.outcome != "passed"]
    if not others:
        return "passed"
    return f"{len(results) - len(others)} of {len(results)} steps passed; " + ", ".join(others)


def exit_status(results: Sequence[Result], on_cpu: bool) -> int:
    """0 when every step passed, 1 otherwise. On a CPU the steps that need a GPU do not count."""
    counted = [result for result in results if not (on_cpu and result.note == "needs a GPU")]
    return int(not counted or any(result.outcome != "passed" for result in counted))


def markdown(facts: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The table with the facts above it."""
    lines = ["# gpu-check", "", f"Verdict: {verdict(results)}.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for result in results:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row(result)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def row(result: Result) -> tuple[str, str, str, str, str]:
    """The cells of one result."""
    figures = "; ".join(f"{name} {plain(value)}" for name, value in result.figures.items())
    return (result.name, result.outcome, f"{result.seconds:.0f}", figures, result.note or result.shows)


def plain(value: Any) -> str:
    """A figure in few digits; two of them are the lowest and the highest."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " to ".join(plain(one) for one in value)
    return str(value)


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table."""
    table = Table(*COLUMNS, title="gpu-check")
    for result in results:
        colour = COLOURS[result.outcome]
        name, outcome, *rest = row(result)
        table.add_row(name, f"[{colour}]{outcome}[/]", *(cell.replace("[", "\\[") for cell in rest))
    console.print(table)
