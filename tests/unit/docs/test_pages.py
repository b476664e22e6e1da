"""The documentation points at what is there: files, headings, modules, commands, settings."""

from pathlib import Path

import pytest

from tests.pages import (
    ROOT,
    bad_blocks,
    bad_commands,
    bad_links,
    bad_paths,
    blocks,
    long_lines,
    make_targets,
)

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# What a page may say although it is not there: the reader makes it.
MADE_BY_THE_READER = {"configs/mine.yaml"}
# NOT YET: pages whose lines are longer than the rest of the house; take a page out when it is rewritten.
STILL_LONG = {
    "README.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/configuration.md",
    "docs/engines.md",
    "docs/objectives.md",
    "docs/performance.md",
    "docs/results.md",
    "docs/rollouts.md",
    "docs/trie.md",
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_points_at_what_is_there(page: Path):
    text = page.read_text()
    missing = [fault for fault in bad_paths(text) if not any(path in fault for path in MADE_BY_THE_READER)]
    assert bad_links(text, page.parent) + missing + bad_commands(text) + bad_blocks(text) == []


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in STILL_LONG], ids=name_of)
def test_the_lines_of_a_page_are_short(page: Path):
    assert long_lines(page.read_text()) == []


def test_make_help_lists_every_target_that_users_call():
    listed = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().split("\n") if "  ## " in line}
    assert make_targets() - {name for names in listed for name in names.split()} == {"check-tests"}


def test_there_is_something_to_check():
    texts = [page.read_text() for page in PAGES]
    assert len(PAGES) >= 10 and sum(len(blocks(text, "sh", "yaml")) for text in texts) >= 5


def test_broken_links_are_noticed(tmp_path: Path):
    (tmp_path / "other.md").write_text("# One `thing`, and more\n```sh\n# no heading\n```\n")
    assert (
        bad_links("[a](other.md#one-thing-and-more) [b](https://x.y/z) [c](#here)\n## Here\n", tmp_path) == []
    )
    assert bad_links("[a](gone.md)", tmp_path) == ["link gone.md: there is no such file"]
    assert len(bad_links("[a](other.md#no-heading) [b](#there)", tmp_path)) == 2


def test_paths_and_modules_that_are_gone_are_noticed():
    assert (
        bad_paths("`learner/gate/gate.py`, `tests/engine`, `requirements/*.lock`, `reward/<type>`, `a/b`")
        == []
    )
    assert (
        bad_paths("`sluice.learner.gate.gate`, `sluice.learner.gate.gate.compute_gate`, `sluice.cluster`")
        == []
    )
    gone = "`learner/gate.py` and `sluice.learner.step`, `sluice.learner.gate.gate.shut`"
    assert [fault.split(":")[0] for fault in bad_paths(gone)] == [
        "path learner/gate.py",
        "module sluice.learner.step",
        "module sluice.learner.gate.gate.shut",
    ]


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


def test_long_lines_are_noticed_outside_of_tables_links_and_code():
    long = "word " * 23
    assert long_lines(f"| {long} |\n```\n{long}\n```\n[x](y) {long}\nshort\n") == []
    assert len(long_lines(f"a\n{long}\n")) == 1
