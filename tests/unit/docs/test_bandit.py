"""Objectives reach the optimum of their theory, by exact expectations; `python docs/scripts/bandit.py` runs
all of it.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[3] / "docs" / "scripts" / "bandit.py"
SPEC = importlib.util.spec_from_file_location("bandit", SOURCE)
bandit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bandit)
SMALL = {case.name: case for case in bandit.CASES if case.candidates < 2 or not case.logged}


@pytest.mark.parametrize("name", SMALL)
def test_the_optimum_is_reached(name):
    case, world = SMALL[name], bandit.random_bandit(seed=1)
    first, *_, last = bandit.train(case, world)
    if case.optimum is None:
        assert (
            bandit.misordered(world, first).min() > 0.1
            and bandit.misordered(world, last).max() < bandit.REACHED
        )
    else:
        optimum = case.optimum(world)
        assert bandit.distance(first, optimum).min() > 0.05
        assert bandit.distance(last, optimum).max() < bandit.REACHED


def test_rows_are_all_that_can_happen():
    world = bandit.random_bandit()
    case = bandit.Case("pairs", bandit.NllObjective(), candidates=3)
    rows = bandit.Rows(world, case)
    batch, weight_B = rows.drawn_from(
        world.reference_XN.log()[..., None] / 2 * torch.ones(2, dtype=torch.float64)
    )
    assert batch.prompts == 2 * 9 * 165  # multisets of three of nine items
    per_context = torch.zeros(2, dtype=torch.float64).index_add(0, rows.context_B, weight_B)
    torch.testing.assert_close(per_context, torch.ones(2, dtype=torch.float64))
