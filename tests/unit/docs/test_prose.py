"""The pages: length of lines and sentences, links between them."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SPEC = importlib.util.spec_from_file_location("sentences", ROOT / "docs" / "scripts" / "sentences.py")
sentences = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sentences)
PAGES = sorted((ROOT / "docs").rglob("*.md")) + [
    ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
]
LONGEST_LINE = 110
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")


def anchors(path):
    """Headings as GitHub makes anchors of them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_are_short(path):
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > LONGEST_LINE and not line.startswith("|")] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for page, anchor in LINK.findall(text):
        if not page.startswith("http"):
            target = (path.parent / page) if page else path
            assert target.exists(), page
            assert not anchor or anchor in anchors(target), f"{page}#{anchor}"


def test_sentences_are_counted():
    text = "# Not this\n\nOne two three. Four\nfive `six.py`!\n\n- Seven: [eight](x)\n- nine\n\n| no | no |\n"
    text += "```sh\nno no\n```\n"
    assert sentences.sentences_of(text) == ["One two three.", "Four five `six.py`!", "Seven: eight", "nine"]
    assert sentences.mean_words(text) == 9 / 4


def test_readme_is_plain():
    assert sentences.mean_words((ROOT / "README.md").read_text()) <= 15
