import pytest
import torch

from sluice.catalog.errors import RankerError
from sluice.learner.objectives.settings.preference import IntervalPairs, LoggedPairs, SelfPairs
from sluice.learner.objectives.terms.preference_pairs import preference_pairs, widest_gap
from tests.unit.learner.learner_cases import NAN, one_group

SAME_FIRST_TWO = torch.tensor([[[3, 7, 11], [3, 7, 11], [4, 7, 10], [5, 7, 10]]])


def group(scores=(1.0, 2.0, 3.0, 4.0), spread=(0.25,) * 4, target_spread=0.25, items=(1, 2, 3, 4), **changes):
    values = {
        "candidate_scores_BK": torch.tensor([list(scores)]),
        "candidate_spread_BK": torch.tensor([list(spread)]),
        "target_spread_B": torch.tensor([target_spread]),
        "candidate_items_BK": torch.tensor([list(items)]),
    }
    return one_group(**(values | changes))


def found(batch, settings):
    """(chosen, rejected) of the only prompt, 0 being the ground truth and 1..4 the candidates."""
    pairs = preference_pairs(batch, settings)
    listed = zip(
        *(part[0].tolist() for part in (pairs.chosen_BP, pairs.rejected_BP, pairs.mask_BP)), strict=True
    )
    return [(chosen, rejected) for chosen, rejected, used in listed if used]


def test_intervals_must_not_touch():
    # gaps are the differences of scores less 0.5; 2.5 against 2 and 3 against 2.5 touch
    pairs = found(group(), IntervalPairs(per_prompt=20))
    assert pairs == [(4, 1), (3, 1), (4, 2), (0, 1), (4, 0), (2, 1), (3, 2), (4, 3)]
    assert found(group(), IntervalPairs(z=2.0, per_prompt=20)) == [(4, 1), (3, 1), (4, 2), (0, 1), (4, 0)]
    everything = found(group(), IntervalPairs(z=0.0, per_prompt=20))
    assert len(everything) == 10 and {(0, 2), (3, 0)} <= set(everything)


def test_the_widest_gaps_are_kept_and_the_rest_is_masked():
    assert found(group(), IntervalPairs(per_prompt=4)) == [(4, 1), (3, 1), (4, 2), (0, 1)]
    pairs = preference_pairs(group(), IntervalPairs(per_prompt=10))
    assert pairs.mask_BP.tolist() == [[True] * 8 + [False] * 2]
    assert pairs.chosen_BP[0, 8:].tolist() == pairs.rejected_BP[0, 8:].tolist() == [0, 0]


def test_an_uncertain_member_is_neither_chosen_nor_rejected():
    batch = group(
        spread=(0.0, 0.0, 0.0, 2.0), target_spread=0.0
    )  # 4 +- 2 is above 1 alone, and below nothing
    pairs = found(batch, IntervalPairs(per_prompt=20))
    assert [pair for pair in pairs if 4 in pair] == [(4, 1)]
    assert (3, 0) in pairs and (0, 2) in pairs
    unsure = found(
        group(spread=(0.0,) * 4, target_spread=1.0), IntervalPairs(per_prompt=20)
    )  # GT is 2.5 +- 1
    assert [pair for pair in unsure if 0 in pair] == [(0, 1), (4, 0)]


def test_the_ground_truth_takes_part_once():
    hit = group(items=(1, 0, 3, 4))  # candidate 2 is GT with a score of its own
    assert all(2 not in pair for pair in found(hit, IntervalPairs(per_prompt=20)))
    without = found(hit, IntervalPairs(per_prompt=20, ground_truth=False))
    assert without == [(4, 1), (3, 1), (4, 2), (2, 1), (3, 2), (4, 3)]


def test_hallucinations_and_repetitions_have_no_interval_of_their_own():
    invalid = group(items=(-1, 2, 3, 4), scores=(1.0, 2.0, 3.0, 4.0))
    assert all(1 not in pair for pair in found(invalid, IntervalPairs(per_prompt=20)))
    unscored = group(items=(-1, 2, 3, 4), scores=(NAN, 2.0, 3.0, 4.0), spread=(NAN, 0.25, 0.25, 0.25))
    assert found(unscored, IntervalPairs(per_prompt=20)) == found(invalid, IntervalPairs(per_prompt=20))
    repeated = group(items=(1, 1, 3, 4), scores=(1.0, 1.0, 3.0, 4.0), candidates_BKL=SAME_FIRST_TWO)
    assert all(2 not in pair for pair in found(repeated, IntervalPairs(per_prompt=20)))
    assert (4, 1) in found(repeated, IntervalPairs(per_prompt=20))


def test_intervals_need_a_spread():
    for missing in ("candidate_spread_BK", "target_spread_B"):
        with pytest.raises(RankerError, match=r"ranker\.ensemble to 2"):
            preference_pairs(group(**{missing: None}), IntervalPairs())


@pytest.mark.parametrize(
    ("items", "most", "pairs"),
    [
        ((1, 2, 3, 4), 9, [(0, 1), (0, 2), (0, 3), (0, 4)]),
        ((1, 2, 3, 4), 2, [(0, 1), (0, 2)]),
        ((1, 0, -1, 4), 9, [(0, 1), (0, 3), (0, 4)]),
        ((0, 0, 0, 0), 9, []),
        ((-1, -1, -1, -1), 9, [(0, 1), (0, 2), (0, 3), (0, 4)]),
    ],
)
def test_logged_over_generated(items, most, pairs):
    assert found(group(items=items), LoggedPairs(per_prompt=most)) == pairs


def test_logged_over_generated_counts_equal_candidates_once():
    batch = group(items=(1, 1, 3, 4), candidates_BKL=SAME_FIRST_TWO)
    assert found(batch, LoggedPairs()) == [(0, 1), (0, 3), (0, 4)]


@pytest.mark.parametrize(
    ("items", "scores", "margin", "pairs"),
    [
        ((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), 1.0, [(4, 1), (4, 2), (4, 3)]),
        ((1, 2, 3, 4), (4.0, 2.0, 4.0, 1.0), 1.0, [(1, 4), (3, 4), (1, 2), (3, 2)]),
        ((1, 2, 3, -1), (1.0, 2.0, 3.0, NAN), 1.0, [(3, 4), (3, 1), (3, 2)]),
        ((1, 2, 3, -1), (1.0, 1.0, 1.0, NAN), 0.0, []),
        ((1, 2, 3, -1), (1.0, 1.0, 1.0, NAN), 1.0, [(1, 4), (2, 4), (3, 4)]),
        ((1, 2, 3, 4), (2.0, 2.0, 2.0, 2.0), 1.0, []),
        ((-1, -1, -1, -1), (NAN, NAN, NAN, NAN), 1.0, []),
        ((1, 0, 3, 4), (-1.0, -2.0, -3.0, -4.0), 1.0, [(1, 4), (1, 3), (1, 2)]),
    ],
)
def test_self_generated(items, scores, margin, pairs):
    assert found(group(items=items, scores=scores), SelfPairs(invalid_margin=margin, per_prompt=9)) == pairs


def test_self_generated_counts_equal_candidates_once():
    batch = group(items=(1, 1, 3, 4), scores=(5.0, 5.0, 3.0, 4.0), candidates_BKL=SAME_FIRST_TWO)
    assert found(batch, SelfPairs()) == [(1, 3), (1, 4)]


def test_prompts_do_not_see_each_other():
    first, second = group(), group(scores=(4.0, 3.0, 2.0, 1.0))
    joined = type(first)(
        **{
            name: torch.cat([value, getattr(second, name)]) if isinstance(value, torch.Tensor) else value
            for name, value in vars(first).items()
        }
    )
    pairs = preference_pairs(joined, SelfPairs(per_prompt=2))
    assert pairs.chosen_BP.tolist() == [[4, 4], [1, 1]] and pairs.rejected_BP.tolist() == [[1, 2], [4, 3]]


def test_widest():
    inf = float("inf")
    gaps = torch.tensor([[[-inf, 1.0], [2.0, -inf]], [[-inf, -inf], [-inf, 0.0]]])
    pairs = widest_gap(gaps, 9)
    assert pairs.mask_BP.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert pairs.chosen_BP.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert pairs.rejected_BP.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_other_settings_are_refused():
    with pytest.raises(TypeError, match="str"):
        preference_pairs(one_group(), "self_generated")
