"""The unit tests beside what changed since the branch left main: `python -m tests.changed` prints them for
pytest.

A file's tests stand in the folder of tests/unit that mirrors its own. The shape of the code, the doctests and
the documentation are tested each time.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
MIRRORED = ("actors", "catalog", "cluster", "docs", "learner", "services")
ALWAYS = (
    "tests/unit/test_layering.py",
    "tests/unit/test_doctests.py",
    "tests/unit/docs/test_pages.py",
    "tests/unit/docs/test_prose.py",
    "tests/unit/docs/test_citations.py",
)


def choose_tests(changed: Iterable[str], existing: Iterable[str]) -> list[str]:
    """The tests to run, of those that exist, for files that changed (paths from the root)."""
    folders, files = set(), set()
    for path in map(PurePosixPath, changed):
        if path.parts[0] in MIRRORED:
            folders.add(PurePosixPath("tests", "unit", *path.parent.parts))
        elif path.parts[:2] == ("tests", "unit"):
            (files if path.name.startswith("test_") else folders).add(
                path if path.name.startswith("test_") else path.parent
            )
    chosen = [
        test for test in existing if PurePosixPath(test).parent in folders or PurePosixPath(test) in files
    ]
    return [*ALWAYS, *sorted(test for test in chosen if test not in ALWAYS)]


def changed_files(main: str = "main") -> list[str]:
    """Files that differ from where the branch left `main`, or from HEAD without it; new files too."""
    base = _git("merge-base", "HEAD", main) or ["HEAD"]
    return [*_git("diff", "--name-only", base[0]), *_git("ls-files", "--others", "--exclude-standard")]


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


if __name__ == "__main__":
    unit_tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "unit").rglob("test_*.py")]
    print(*choose_tests(changed_files(), unit_tests))
