import numpy as np
import pytest
import torch

from sluice.learner.batches.strata import PopularityCuts, popularity_cuts, strata_of
from sluice.learner.objectives.terms.group_term import advantage_by_popularity
from tests.unit.learner.batches.test_collate import OTHER, collated, group
from tests.unit.learner.batches.test_sources import queue_figures


def test_each_stratum_holds_a_third_of_the_interactions():
    shares = np.asarray([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.float32) / 36
    cuts = popularity_cuts(shares)  # 8 + 7 >= 12, then 6 + 5 reach 24
    assert cuts == pytest.approx((7 / 36, 5 / 36))
    strata = strata_of(torch.from_numpy(shares), cuts)
    assert [strata[name].int().tolist() for name in ("tail", "middle", "head")] == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_equal_items_are_in_one_stratum_and_no_item_is_in_none():
    cuts = popularity_cuts(np.full(9, 1 / 9, dtype=np.float32))
    strata = strata_of(torch.tensor([1 / 9, torch.nan, 0.0]), cuts)
    assert {name: inside.tolist() for name, inside in strata.items()} == {
        "head": [True, False, False],
        "middle": [False, False, False],
        "tail": [False, False, True],
    }


def test_advantages_are_reported_by_the_popularity_of_the_candidate():
    advantages = torch.tensor([[1.0, -3.0, 2.0, torch.nan], [-1.0, 4.0, 0.0, 5.0]])
    shares = torch.tensor([[0.5, 0.5, 0.01, 0.5], [0.1, 0.5, 0.01, torch.nan]])
    metrics = advantage_by_popularity(advantages, strata_of(shares, PopularityCuts(0.5, 0.1)))
    assert {name: value.tolist() for name, value in metrics.items()} == {
        "advantage/head": [2.0, 3.0],
        "advantage_positive/head": [2.0, 3.0],
        "advantage/middle": [-1.0, 1.0],
        "advantage_positive/middle": [0.0, 1.0],
        "advantage/tail": [2.0, 2.0],
        "advantage_positive/tail": [1.0, 2.0],
    }


def test_batches_of_the_queue_know_the_cuts():
    assert collated(group(), OTHER).popularity_cuts is None
    seen = []
    queue_figures([group()], seen.append)
    assert seen[0].popularity_cuts == pytest.approx((6 / 28, 4 / 28))  # 7 + 6 of 28, then 5 + 4
