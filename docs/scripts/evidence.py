"""Writes the tables of studies into docs/evidence.md: `python docs/scripts/evidence.py studies/half-wrong`.

A study's tables stand between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "evidence.md"


def insert(page: str, name: str, report: str) -> str:
    """The page with the tables of a study's `report.md`, its headings one level lower.

    Raises:
        ValueError: the page has no place for this study.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    place = re.compile(rf"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"docs/evidence.md has no place for {name}: write {begin}{end} where it shall stand")
    tables = report[report.index("\n## ") :].replace("\n## ", "\n### ")
    return place.sub(lambda _: tables.lstrip("\n") + "\n", page)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        directory = Path(argument)
        PAGE.write_text(insert(PAGE.read_text(), directory.name, (directory / "report.md").read_text()))
