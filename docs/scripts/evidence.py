"""Writes the tables of studies into docs/evidence.md: `python docs/scripts/evidence.py studies/half-wrong`.

A study's tables stand between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
import sys
from pathlib import Path

PAIRS, TRUE, KNOWS = "| pair |", "true click-through", "what the gate knows"
PAGE = Path(__file__).resolve().parents[1] / "evidence.md"


def insert(page: str, name: str, report: str) -> str:
    """The page with the tables of a study's `report.md`, its headings one level lower.

    The strata are left out. Of the differences those of the main metric over all users are kept: true
    click-through, else HR@10. Against the first row that others are compared with all are kept, against the
    others those that are better.

    Raises:
        ValueError: the page has no place for this study.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    place = re.compile(rf"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"docs/evidence.md has no place for {name}: write {begin}{end} where it shall stand")
    first, *parts = report[report.index("\n## ") :].split("\n### ")
    kept = [_without_details(first), *(part for part in parts if KNOWS in part.splitlines()[0])]
    tables = "\n\n#### ".join(part.strip("\n") for part in kept).replace("## ", "### ", 1)
    return place.sub(lambda _: tables + "\n\n", page)


def _without_details(tables: str) -> str:
    before, head, after = tables.partition(PAIRS)
    main = TRUE if f"| {TRUE} |" in after else "HR@10"
    rows = [line.split(" | ") for line in after.splitlines()]
    pairs = [row for row in rows if len(row) > 2 and row[1] == main]
    kept = [row for row in pairs if _second(row) == _second(pairs[0]) or row[2].startswith("+")]
    lines = after.splitlines()[:2]  # the rest of the head, and the line below it
    return before + head + "\n".join([*lines, *(" | ".join(row) for row in kept)]) if pairs else tables


def _second(row: list[str]) -> str:
    return row[0].split(" - ")[-1]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        directory = Path(argument)
        PAGE.write_text(insert(PAGE.read_text(), directory.name, (directory / "report.md").read_text()))
