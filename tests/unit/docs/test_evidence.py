"""The tables of a study get to their place in docs/evidence.md, and nowhere else."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "docs" / "scripts" / "evidence.py"
SPEC = importlib.util.spec_from_file_location("docs_evidence", SOURCE)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

REPORT = "- a sentence\n\n## shop\n\n| row |\n| --- |\n| 1 |\n"


def test_tables_take_the_place_of_those_before():
    other = "<!-- other -->\nkept\n<!-- end of other -->\n"
    page = f"# Evidence\n\n<!-- shop -->\nold\n<!-- end of shop -->\n\n{other}"
    written = script.insert(page, "shop", REPORT)
    assert "### shop\n\n| row |" in written and "old" not in written and "a sentence" not in written
    assert other in written
    assert script.insert(written, "shop", REPORT) == written


HEAD = "\n| pair | metric | difference |\n| --- | --- | --- |\n"
PAGE = "<!-- shop -->\n<!-- end of shop -->\n"


def test_differences_of_all_users_in_the_main_metric_are_kept():
    rows = [
        "| a - b | HR@10 | 1 |",
        "| a - b | true click-through, A | 2 |",
        "| a - b | true click-through | 3 |",
    ]
    written = script.insert(PAGE, "shop", REPORT + HEAD + "\n".join(rows) + "\n")
    assert rows[2] in written and rows[0] not in written and rows[1] not in written
    plain = script.insert(PAGE, "shop", REPORT + HEAD + rows[0] + "\n| a - b | HR@10, A | 4 |\n")
    assert rows[0] in plain and "HR@10, A" not in plain and "| 1 |" in plain
    assert "| pair | metric | difference |\n| --- | --- | --- |\n| a - b" in plain


def test_against_a_second_row_only_what_is_better_is_kept():
    rows = ["| a - b | HR@10 | -1 |", "| b - a | HR@10 | +1 |", "| c - a | HR@10 | -1 |"]
    written = script.insert(PAGE, "shop", REPORT + HEAD + "\n".join(rows) + "\n")
    assert rows[0] in written and rows[1] in written and rows[2] not in written


def test_of_the_further_tables_the_test_of_the_gate_is_kept():
    further = "\n### shop: what the gate knows\n\n| g |\n\n### shop: a - b\n\n| s |\n"
    written = script.insert(PAGE, "shop", REPORT + further)
    assert "#### shop: what the gate knows\n\n| g |" in written and "| s |" not in written


def test_a_study_without_a_place_is_refused():
    with pytest.raises(ValueError, match="has no place for shop"):
        script.insert("# Evidence\n", "shop", REPORT)


def test_the_page_has_a_place_for_every_study_that_it_tells_of():
    page = script.PAGE.read_text()
    names = [
        line.removeprefix("<!-- ").removesuffix(" -->")
        for line in page.splitlines()
        if line.startswith("<!-- ")
    ]
    own = [name for name in names if not name.startswith("end of ")]
    assert own and all(f"<!-- end of {name} -->" in page for name in own)
    configs = SOURCE.parents[2] / "configs" / "studies"
    assert all((configs / f"{name}.yaml").is_file() for name in own)
