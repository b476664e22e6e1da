"""Writes the tables of studies into docs/evidence.md: `python docs/scripts/evidence.py studies/half-wrong`.

A study's tables stand between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
import sys
from pathlib import Path

PAIRS, TRUE = "| pair |", "true click-through"
PAGE = Path(__file__).resolve().parents[1] / "evidence.md"


def insert(page: str, name: str, report: str) -> str:
    """The page with the tables of a study's `report.md`, its headings one level lower.

    Of the differences those of the main metric over all users are kept: true click-through, else HR@10.

    Raises:
        ValueError: the page has no place for this study.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    place = re.compile(rf"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"docs/evidence.md has no place for {name}: write {begin}{end} where it shall stand")
    tables = report[report.index("\n## ") :].replace("\n## ", "\n### ")
    main = TRUE if f"| {TRUE} |" in tables.split(PAIRS)[-1] else "HR@10"
    kept, is_pair = [], False
    for line in tables.splitlines():
        is_pair = line.startswith(PAIRS) or (is_pair and line.startswith("|"))
        if not is_pair or line.startswith((PAIRS, "| ---")) or line.split(" | ")[1] == main:
            kept.append(line)
    return place.sub(lambda _: "\n".join(kept).strip("\n") + "\n\n", page)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        directory = Path(argument)
        PAGE.write_text(insert(PAGE.read_text(), directory.name, (directory / "report.md").read_text()))
