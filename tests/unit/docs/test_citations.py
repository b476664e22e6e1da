"""What code and pages cite is there: headings of docs/algorithms.md, pages, paths, terms of the glossary."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("catalog", "learner", "actors", "services", "cluster")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
CITED = re.compile(r"docs/algorithms\.md,\s+")
NAMED_PAGE = re.compile(r"docs/[a-z_-]+\.md")
PATH = re.compile(
    r"`((?:catalog|learner|actors|services|cluster|tests|docs|configs|requirements)/[\w./*-]+)`"
)
THE_READERS_OWN = ("configs/mine.yaml",)
PLACE = re.compile(r"^\| .* \| `([\w./-]+\.py):([\w.]+)` \|$", re.MULTILINE)


def headings(text):
    return re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )


def cited_headings(source):
    """The citations of a source that name a heading, and the text of those that name none."""
    text = " ".join(source.split())
    known = sorted(headings((ROOT / "docs" / "algorithms.md").read_text()), key=len, reverse=True)
    good, bad = [], []
    for match in CITED.finditer(text):
        rest = text[match.end() :]
        found = next((name for name in known if re.match(re.escape(name) + r"(?![\w-])", rest)), None)
        (good if found else bad).append(found or rest[:60])
    return good, bad


def names_in(path):
    """What a module defines: its names, and `Class.member` for methods, properties and fields."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        names = defined(node)
        found |= names
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for child in node.body for name in defined(child)}
    return found


def defined(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    flat = [name for target in targets for name in getattr(target, "elts", [target])]
    return {target.id for target in flat if isinstance(target, ast.Name)}


def test_a_citation_of_no_heading_is_noticed():
    assert cited_headings("see docs/algorithms.md, GRPO-SR.") == (["GRPO-SR"], [])
    assert cited_headings("see docs/algorithms.md,\n    Groups drawn\n    without replacement)") == (
        ["Groups drawn without replacement"],
        [],
    )
    for wrong in ("GRPOX", "section 2", "grpo"):
        assert cited_headings(f"docs/algorithms.md, {wrong}.") == ([], [f"{wrong}."])


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_cite_headings_and_pages_that_exist(path):
    source = path.read_text()
    _, bad = cited_headings(source)
    assert bad == []
    assert "algorithms section" not in source
    assert [page for page in NAMED_PAGE.findall(source) if not (ROOT / page).is_file()] == []
    assert len(CITED.findall(source)) == source.count("algorithms.md"), (
        "cite it as docs/algorithms.md, HEADING"
    )


def is_defined(dotted):
    """Whether `sluice.a.b.c` is a module or folder of the project, or a name in one."""
    parts = dotted.split(".")[1:]
    for end in range(len(parts), 0, -1):
        path, rest = ROOT.joinpath(*parts[:end]), ".".join(parts[end:])
        if path.with_suffix(".py").is_file():
            return not rest or rest in names_in(path.with_suffix(".py"))
        if path.is_dir():
            return not rest
    return False


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_docstrings_exist(path):
    names = set(re.findall(r"`(sluice\.[\w.]+)`", " ".join(path.read_text().split())))
    assert [name for name in sorted(names) if not is_defined(name)] == []


def test_a_name_that_is_not_there_is_noticed():
    assert is_defined("sluice.learner.gate") and is_defined("sluice.learner.gate.gate.GateResult.admitted_B")
    assert not is_defined("sluice.learner.gates") and not is_defined("sluice.learner.gate.gate.Gate")


def test_every_objective_cites_its_definition():
    for path in (ROOT / "learner" / "objectives").glob("*.py"):
        if path.name not in ("__init__.py", "build.py"):
            assert cited_headings(path.read_text())[0], path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_paths_of_a_page_exist(path):
    text = path.read_text()
    if path.name == "extending.md":  # its own new files
        text = re.sub(r"^```(python|diff)\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    missing = [name for name in PATH.findall(text) if not list(ROOT.glob(name))]
    assert [name for name in missing if name not in THE_READERS_OWN] == []


def test_the_names_of_a_module_are_found(tmp_path):
    file = tmp_path / "m.py"
    file.write_text("A, B = range(2)\nc: int = 1\nclass D:\n    e: int\n    def f(self): ...\n")
    assert names_in(file) == {"A", "B", "c", "D", "D.e", "D.f"}


def test_the_place_of_every_term_exists():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    places = PLACE.findall(text)
    assert len(rows) == len(places) >= 60, "a row of the glossary ends with | `path.py:name` |"
    assert [f"{path}:{name}" for path, name in places if name not in names_in(ROOT / path)] == []
    terms = [re.match(r"\| \*\*(.*?)\*\*", row).group(1) for row in rows]
    assert terms == sorted(terms, key=str.lower)
