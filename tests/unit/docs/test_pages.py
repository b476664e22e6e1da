"""The commands and the code of the documentation work: subcommands, options, targets, settings, syntax."""

import re
from pathlib import Path

import pytest

from tests.pages import ROOT, bad_blocks, bad_commands, blocks, make_targets, prose
from tests.unit.docs.test_citations import is_defined

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# The CHANGELOG says what these are called now.
FORMER = {"sluice bench gate: no bench gate", "make gate: no such target"}
# NOT YET: what pages name already and what is still to come; take it out when it is there.
TO_COME = {
    "sluice config explain learner.lr: no command explain",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_and_the_code_of_a_page_work(page: Path):
    text = page.read_text()
    faults = [fault for fault in bad_commands(text) if fault not in TO_COME | FORMER]
    assert faults + bad_blocks(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_modules_that_a_page_names_exist(page: Path):
    names = re.findall(r"`(sluice\.[\w.]+)`", prose(page.read_text()))
    assert [name for name in names if not is_defined(name)] == []


def test_make_help_lists_every_target_that_users_call():
    listed = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().split("\n") if "  ## " in line}
    assert make_targets() - {name for names in listed for name in names.split()} == {"check-tests"}


def test_there_is_something_to_check():
    texts = [page.read_text() for page in PAGES]
    assert len(PAGES) >= 10 and sum(len(blocks(text, "sh", "yaml")) for text in texts) >= 5


def test_commands_that_do_not_exist_are_noticed():
    right = (
        "```sh\nmake train   # make nothing\nsluice submit --config a --set b=1 && make test-gpu A=b\n```\n"
    )
    assert bad_commands(right + "`sluice bench NAME`, `.venv/bin/sluice config check a.yaml`, `it's`") == []
    wrong = (
        "```sh\nmake trian\npython -m sluice sumbit\n```\n`sluice bench nothing` `sluice submit --cnofig x`"
    )
    assert bad_commands(wrong) == [
        "make trian: no such target",
        "sluice sumbit: no command sumbit",
        "sluice bench nothing: no bench nothing",
        "sluice submit --cnofig x: no option --cnofig",
    ]


def test_code_that_does_not_compile_and_settings_that_do_not_exist_are_noticed():
    assert bad_blocks("```python\nx = 1\n```\n```yaml\nseed: 3\n```\n```yaml\nelsewhere: 1\n```\n") == []
    faults = bad_blocks("```python\nx = = 1\n```\n```yaml\nlearner: {lrr: 3}\n```\n")
    assert [fault.split(":")[0] for fault in faults] == ["python block 1", "yaml block 1"]
    assert "lrr" in faults[1]
