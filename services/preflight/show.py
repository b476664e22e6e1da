"""Findings as a user sees them: a table in a terminal, one line each in a file or a pipe."""

import os
from collections.abc import Callable, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sluice.services.config import RunConfig
from sluice.services.preflight.finding import Finding, exit_code
from sluice.services.preflight.preflight import check_run
from sluice.services.preflight.resources import Machines


def check_and_show(
    config: RunConfig, find_machines: Callable[[bool], Machines] | None, stream: TextIO
) -> int:
    """Check a run before it starts and print what is wrong; returns the exit code, 0 when it may start."""
    findings = check_run(config, find_machines, os.environ)
    show_findings(findings, stream)
    return exit_code(findings)


def show_findings(findings: Sequence[Finding], stream: TextIO) -> None:
    """Print them as they come; nothing when there are none."""
    if not stream.isatty():
        for finding in findings:
            print(finding.line, file=stream)
    elif findings:
        table = Table(box=box.SIMPLE)
        for title in ("", "setting", "is", "must be", "remedy"):
            table.add_column(title, overflow="fold")
        for finding in findings:
            style = "bold red" if finding.exit_code else "yellow"
            table.add_row(Text(finding.kind, style=style), *map(Text, finding.cells))
        Console(file=stream, highlight=False).print(table)
