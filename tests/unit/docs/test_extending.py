"""docs/extending.md is applied to a copy of the project, and the tests on that page run there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = ("objective", "reward", "engine", "ranker", "data source", "split")
COPIED = ("catalog", "learner", "actors", "services", "cluster", "sluice", "tests", "pyproject.toml")


def blocks(text):
    """(kind, path, content) of every block that names its file."""
    return BLOCK.findall(text)


def apply_diff(source, diff):
    """`source` with the one place replaced that has the context and the removed lines of `diff`."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    places = [match.start() for match in re.finditer("^" + re.escape(before), source, re.MULTILINE)]
    assert len(places) == 1, f"{len(places)} places have\n{before}"
    return source[: places[0]] + after + source[places[0] + len(before) :]


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    copy = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    for kind, path, content in blocks(PAGE.read_text()):
        file = copy / path
        if kind == "diff":
            file.write_text(apply_diff(file.read_text(), content))
        else:
            assert not file.exists(), f"{path} is there already"
            file.write_text(content)
    return copy


def run_in(copy, *arguments):
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_diff_finds_its_one_place():
    assert apply_diff("a\nb\nc\n", " a\n-b\n+x\n+y\n") == "a\nx\ny\nc\n"
    for source in ("a\nc\n", "a\nb\na\nb\n"):
        with pytest.raises(AssertionError, match="places have"):
            apply_diff(source, " a\n-b\n+x\n")


def test_every_block_of_code_names_its_file():
    text = PAGE.read_text()
    assert len(blocks(text)) == len(re.findall(r"^```(?:python|diff)$", text, re.MULTILINE)) > 20
    for kind, path, _ in blocks(text):
        assert kind == "python" or (ROOT / path).is_file()
    assert re.findall(r"^## (?:An?) (.*)$", text, re.MULTILINE) == list(SECTIONS)


def test_the_tests_of_the_page_pass(extended):
    tests = [path for kind, path, _ in blocks(PAGE.read_text()) if path.startswith("tests/")]
    assert len(tests) == len(SECTIONS)
    output = run_in(extended, "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert int(re.search(r"(\d+) passed", output).group(1)) >= 2 * len(SECTIONS)


def test_the_code_of_the_page_keeps_the_house_rules(extended):
    written = [path for kind, path, _ in blocks(PAGE.read_text()) if kind == "python"]
    run_in(extended, "ruff", "check", "--no-cache", *written)
    run_in(extended, "ruff", "format", "--check", "--no-cache", *written)
    chosen = "imports or docstring or short or rooms or torch or wide"
    run_in(extended, "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_layering.py", "-k", chosen)
