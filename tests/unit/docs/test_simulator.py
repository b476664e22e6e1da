"""docs/studies/simulator.md has today's dials, and its picture can be drawn from the shipped world."""

import importlib.util
from pathlib import Path

import numpy as np

from sluice.catalog.simulator.items import make_items
from sluice.catalog.simulator.sessions import simulate_block
from tests.unit.catalog.simulator.worlds import small_world

SOURCE = Path(__file__).parents[3] / "docs" / "scripts" / "simulator.py"
SPEC = importlib.util.spec_from_file_location("docs_simulator", SOURCE)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_the_dials_of_the_page_are_current():
    page = script.PAGE.read_text()
    assert page == script.render(page), "run `python docs/scripts/simulator.py`"
    assert "| `logger.exploration` | number ≥ 0, ≤ 1 | `0.1` |  | Chance that a slot" in page
    assert "| `segment_b.rotation` | number ≥ 0, ≤ 90 | `90.0` | degrees | " in page


def test_a_dial_that_has_changed_is_noticed():
    page = script.PAGE.read_text()
    assert script.render(page.replace("| `0.1` |", "| `0.2` |")) == page


def test_the_picture_shows_the_truth():
    world = small_world(items__count=300, logger__exploration=1)
    items = make_items(world)
    log = simulate_block(world, items, 0)
    random, shown, ideal = script.true_clicks(world, items, log, 1)
    assert shown == np.float32(shown) and abs(random - shown) < 0.05 < ideal - random
    users = log.tally.users[1]
    assert abs(random - log.tally.p_random[1] / users) < 1e-4
    assert abs(ideal - log.tally.p_ideal[1] / users) < 1e-4
