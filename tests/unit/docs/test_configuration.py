"""docs/configuration.md is the page that the settings classes make."""

import importlib.util
import types
from pathlib import Path

import pytest

from sluice.services.config_reference import describe_settings, groups_below
from sluice.services.config_resume import FIXED

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "configuration.md"


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        "docs_configuration", ROOT / "docs" / "scripts" / "configuration.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_current(script: types.ModuleType):
    assert PAGE.read_text() == script.render(), "run `make docs`"


def test_the_settings_of_a_study_are_current(script: types.ModuleType):
    page = script.STUDIES.read_text()
    assert page == script.render_studies(page), "run `make docs`"
    assert script.render_studies(page.replace("| `studies` |", "| `here` |")) == page
    assert "| `arms.<name>.rate_of` | text or null | `null` |" in page


def test_every_setting_is_a_row_with_its_facts(script: types.ModuleType):
    rows = {line for line in script.render().splitlines() if line.startswith("| `")}
    assert "| `learner.lr` | number > 0 | `0.0001` |  | Learning rate after the warm-up. |" in rows
    assert "| `learner.rollout_timeout_s` | number > 0 | `180.0` | seconds |" in " ".join(rows)
    assert "| `name` | text | (required) |" in " ".join(rows)
    named = {row.split("`")[1].removesuffix(".type") for row in rows}
    described = {
        group.model
        for group in groups_below(describe_settings())
        if {entry.path for entry in group.entries if not entry.is_plain_group} <= named
    }
    assert described == {group.model for group in groups_below(describe_settings())}


def test_the_page_lists_what_a_resumed_run_must_not_change(script: types.ModuleType):
    page = script.render()
    assert all(f"- `{name}`: {reason}\n" in page for name, reason in FIXED.items())
