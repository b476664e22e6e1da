"""Areas, bands and disagreement by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sluice.catalog.decoding import Decoding
from sluice.learner.batches.batch import GroupBatch
from sluice.services.audit import order
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.trusted import count_users, last_of_users, tell_apart
from sluice.services.study.groups import areas_of
from tests.unit.services.audit.test_bound import lists_of


def group(scores, target_score, items, target=0):
    items_BK = torch.tensor([items])
    return GroupBatch(
        history_BT=torch.tensor([[1]]),
        history_lengths_B=torch.tensor([1]),
        target_BL=torch.tensor([[target]]),
        candidates_BKL=items_BK[..., None],
        behaviour_log_probs_BKL=torch.zeros(1, len(items), 1),
        candidate_items_BK=items_BK,
        target_items_B=torch.tensor([target]),
        candidate_scores_BK=torch.tensor([scores]),
        target_scores_B=torch.tensor([target_score]),
        distractor_scores_BJ=torch.tensor([[0.0]]),
        allowed_BSLV=None,
        decoding=Decoding(candidates=len(items)),
    )


@pytest.mark.parametrize(
    ("scores", "items", "area"),
    [
        ([1.0, 3.0, 0.0], [5, 6, 7], 2 / 3),
        ([2.0, 3.0, 0.0], [5, 6, 7], 0.5),  # a tie counts half
        ([1.0, 1.0, 3.0], [5, 5, 6], 2 / 3),  # what was drawn twice counts twice
        ([2.0001, 3.0, 0.0, 0.0], [0, 6, 7, 8], 2.5 / 4),  # a draw of the ground truth is a tie
        ([float("nan"), 3.0, 0.0], [-1, 6, 7], 0.5),  # what is no item does not count
        ([float("nan")] * 2, [-1, -1], float("nan")),
    ],
)
def test_the_area_of_a_prompt(scores, items, area):
    assert areas_of(group(scores, 2.0, items)).item() == pytest.approx(area, nan_ok=True)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_a_ranker_that_knows_what_a_perfect_policy_knows_has_an_area_of_one_half(exponent):
    """Candidates and ground truth are draws of one distribution, and its log-prob is the ranker's score."""
    shares = 1 / np.arange(1, 301) ** exponent
    shares /= shares.sum()
    drawn = np.random.default_rng(0).choice(len(shares), size=(4000, 17), p=shares)
    one, items = group([0.0] * 16, 0.0, list(range(16))), torch.from_numpy(drawn)
    scores = torch.from_numpy(np.log(shares)[drawn])
    areas = areas_of(
        replace(
            one,
            candidate_items_BK=items[:, 1:],
            target_items_B=items[:, 0],
            candidate_scores_BK=scores[:, 1:],
            target_scores_B=scores[:, 0],
        )
    )
    assert areas.mean().item() == pytest.approx(0.5, abs=0.015)


def test_only_plain_samples_have_a_chance_to_compare_with():
    assert order.has_chance(Decoding(candidates=4))
    for other in (
        Decoding(candidates=4, kind="beam"),
        Decoding(candidates=4, kind="stochastic_beam"),
        Decoding(candidates=4, temperature=0.7),
        Decoding(candidates=4, top_p=0.9),
    ):
        assert not order.has_chance(other)


def test_bands_of_exposure_are_deciles_of_the_items():
    exposures = np.array([90, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    bands = order.by_exposure(exposures, np.array([1, 0, 0]), np.array([0.2, 0.8, 1.0]), np.arange(3))
    assert [band.label for band in bands] == [
        "decile 1, 0.0% of the exposures",
        "decile 10, 71.4% of the exposures",
    ]
    assert [(band.area.prompts, band.area.value) for band in bands] == [(1, 0.2), (2, 0.9)]


def test_bands_of_history_lengths_hold_their_ends():
    bands = order.by_history_length(np.array([1, 5, 6, 51]), np.array([0.1, 0.3, 0.5, 0.7]), np.arange(4))
    assert [(band.label, round(band.area.value, 6)) for band in bands] == [
        ("1 to 5 items", 0.2),
        ("6 to 20 items", 0.5),
        ("over 50 items", 0.7),
    ]


def test_an_item_that_nobody_had_before_has_a_band_of_its_own():
    ages = np.array([0, 40, 10, 30, 20])
    bands = order.by_item_age(ages, np.array([0.5, 0.4, 0.1, 0.3, 0.2]), np.arange(5))
    assert [(band.label, band.area.value) for band in bands] == [
        ("never seen before", 0.5),
        ("youngest quarter", 0.1),
        ("second quarter", 0.2),
        ("third quarter", 0.3),
        ("oldest quarter", 0.4),
    ]


def test_what_a_prompt_owes_to_chance_is_not_in_its_users_other_prompts():
    areas, users = np.array([1.0, 0.0, 0.5, np.nan, 0.2, 0.4]), np.array([1, 1, 1, 1, 2, 2])
    elsewhere = order.areas_elsewhere(areas, users)
    np.testing.assert_allclose(elsewhere, [0.25, 0.75, 0.5, 0.5, np.nan, np.nan])


def test_disagreement_of_two_lists():
    scores = [[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [5.0, 4.0, 3.0]]
    lists = lists_of([1, 2, 2], [[1, 2, 3]] * 3, [[-1, -2, -3]] * 3, scores)
    told = order.measure_disagreement(lists)
    assert told["other_best"].value == pytest.approx(1 / 3)
    assert told["rank_correlation"].value == pytest.approx((1 - 0.5 + 1) / 3)
    assert (told["policy_right"].value, told["ranker_right"].value) == pytest.approx((1 / 3, 2 / 3))


def test_an_estimate_leaves_out_what_is_not_known():
    estimate = Estimate.of(np.array([1.0, 0.0, np.nan]), np.array([0, 1, 1]))
    assert (estimate.value, estimate.prompts, estimate.users) == (0.5, 2, 2)
    assert np.isnan(Estimate.of(np.array([np.nan]), np.array([0])).value)
    assert Estimate.of(np.ones(3), np.arange(3)).percent() == "100.0% [100.0%, 100.0%]"


def test_prompts_are_told_apart_at_the_cut():
    figure, areas = np.array([0.65, 0.7, np.nan, 0.1]), np.array([0.1, 0.9, 0.5, 0.3])
    known = tell_apart("trust", figure, 0.65, areas, np.arange(4))
    assert known.share == pytest.approx(1 / 3)
    assert (known.above_area.value, known.below_area.value) == (0.9, 0.2)
    assert tell_apart("trust", np.full(2, np.nan), 0.65, areas[:2], np.arange(2)) is None


def test_each_user_is_counted_once_by_the_last_prompt():
    users, positions = np.array([3, 1, 3, 1]), np.array([7, 9, 8, 2])
    assert last_of_users(users, positions).tolist() == [1, 2]
    assert count_users(np.array([0.5, 0.51, 0.65, 0.8, 0.81, np.nan])) == {
        "up to 0.5": 1,
        "0.5 to 0.65": 2,
        "0.65 to 0.8": 1,
        "over 0.8": 1,
        "not known": 1,
    }
