"""`sluice advise`: three sentences on a finished run, and what else its rules say.

    did reward help, and how sure is that     the best checkpoint against control and start, with intervals
    where                                     the strata with the highest and the lowest change
    what to change next                       the first rule that holds (`services/advise/rules.py`)

The report begins with the same sentences, and a run ends with them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.catalog.errors import RunError
from sluice.catalog.files import read_whole_lines
from sluice.services.advise import verdict
from sluice.services.advise.figures import Change, Rows, RunFigures, read_figures
from sluice.services.advise.rule import Rule, holding
from sluice.services.advise.rules import RULES


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is said of a run."""

    sentences: tuple[str, ...]  # three, less what was not measured
    further: tuple[str, ...]  # what other rules say

    def lines(self) -> list[str]:
        """For the terminal."""
        return [*self.sentences, *(f"Also: {sentence}" for sentence in self.further)]


def read_run(run_directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the lines of the metrics file of a run directory.

    Raises:
        RunError: the run has not been judged yet, or this is no run directory.
    """
    path = run_directory / "summary.json"
    if not path.is_file():
        raise RunError(
            f"{run_directory} has no summary.json: give the directory of a finished run, "
            "<output>/<name>-seed<seed>"
        )
    lines = [json.loads(line) for line in read_whole_lines(run_directory / "metrics.jsonl").lines]
    return json.loads(path.read_text()), lines


def advise(summary: Mapping[str, Any], lines: Rows) -> Advice:
    """What the summary and the metrics of a run say; what they lack is left out."""
    rules = holding(RULES, figures := read_figures(summary, lines))
    said = [verdict.pays_sentence(summary), where_sentence(summary.get("stratified") or [])]
    if said[0] is not None:
        said.append(_next_sentence(rules, figures))
    return Advice(
        sentences=tuple(sentence for sentence in said if sentence is not None),
        further=tuple(_told(rule, figures) for rule in (rules if said[0] is None else rules[1:])),
    )


def closing_sentences(summary: Mapping[str, Any], lines: Rows) -> list[str]:
    """What a run ends with and its report begins with: the advice, breadth, exposure and costs."""
    more = (
        verdict.breadth_sentence(summary),
        verdict.exposure_sentence(summary),
        verdict.cost_sentence(summary),
    )
    return [*advise(summary, lines).sentences, *(sentence for sentence in more if sentence is not None)]


def where_sentence(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """The strata where best - control is highest and lowest, of those with an interval; None without any."""
    known = [cell for cell in cells if cell.get("best-control_interval")]
    if not known:
        return None
    ordered = sorted(known, key=lambda cell: -_difference(cell).value)
    best, worst = ordered[0], ordered[-1]
    if _difference(best).value == _difference(worst).value == 0:
        return "Reward changed HR@10 nowhere: on every stratum the best checkpoint is as good as the control."
    shown = "Reward helped most" if _difference(best).low > 0 else "No stratum shows that reward helped; most"
    sentence = f"{shown} where {_stratum(best)}"
    if worst is not best:
        harm = "and harmed" if _difference(worst).high < 0 else "and least"
        sentence += f", {harm} where {_stratum(worst)}"
    return (
        f"{sentence} (best - control of HR@10, the extremes of {len(known)} strata, intervals not corrected "
        "for that)."
    )


def _next_sentence(rules: Sequence[Rule[RunFigures]], figures: RunFigures) -> str:
    if not rules:
        return "Next: no rule asks for a change; another seed says how sure this is."
    return f"Next: {_told(rules[0], figures)}"


def _told(rule: Rule[RunFigures], figures: RunFigures) -> str:
    return f"{rule.change}, since {rule.says(figures)}."


def _stratum(cell: Mapping[str, Any]) -> str:
    return (
        f"start and ranker had the users' validation targets at {cell['policy_rank']} and "
        f"{cell['ranker_rank']}: {_difference(cell)} on {verdict.examples_of(cell):,} examples"
    )


def _difference(cell: Mapping[str, Any]) -> Change:
    low, high = cell["best-control_interval"]
    return Change(value=cell["best_hr@10"] - cell["control_hr@10"], low=low, high=high)
