import pytest
import torch

from sluice.learner.rewards.rewards import group_rewards, least_like_target
from sluice.learner.rewards.settings import RankerReward
from tests.unit.learner.learner_cases import NAN, one_group


def rewards_of(batch, ground_truth, margin, injectable=None):
    return group_rewards(batch, [RankerReward()], ground_truth, margin, injectable)


def group(items, scores=(1.0, 2.0, 3.0, 4.0), **changes):
    return one_group(
        candidate_items_BK=torch.tensor([list(items)]),
        candidate_scores_BK=torch.tensor([list(scores)]),
        **changes,
    )


@pytest.mark.parametrize(
    ("items", "scores", "margin", "rewards"),
    [
        ((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), 1.0, [1.0, 2.0, 3.0, 4.0]),
        ((1, 2, 3, -1), (1.0, 2.0, 3.0, NAN), 1.0, [1.0, 2.0, 3.0, 0.0]),
        ((-1, 2, -1, 4), (NAN, -2.0, NAN, 4.0), 0.25, [-2.25, -2.0, -2.25, 4.0]),
        ((1, 2, 3, -1), (1.0, 2.0, 3.0, NAN), 0.0, [1.0, 2.0, 3.0, 1.0]),
        ((-1, -1, -1, -1), (NAN, NAN, NAN, NAN), 1.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_hallucination_gets_the_lowest_valid_reward_minus_the_margin(items, scores, margin, rewards):
    result = rewards_of(group(items, scores), "none", margin)
    assert result.rewards_BK.tolist() == [rewards]
    assert result.branch_BK.tolist() == [[1, 2, 3, 4]]
    assert not result.injected_BK.any()


@pytest.mark.parametrize(
    ("items", "scores", "rewards"),
    [
        ((1, 0, 3, 4), (1.0, 2.0, 3.0, 4.0), [1.0, 4.0, 3.0, 4.0]),
        ((0, 0, 3, -1), (1.0, 1.0, 3.0, NAN), [3.0, 3.0, 3.0, 0.0]),
        ((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_override_gives_a_hit_the_group_maximum(items, scores, rewards):
    assert rewards_of(group(items, scores), "override", 1.0).rewards_BK.tolist() == [rewards]


@pytest.mark.parametrize(
    ("items", "scores", "target", "rewards"),
    [
        ((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), 2.5, [1.0, 2.0, 3.0, 2.5]),
        ((1, 2, 3, -1), (1.0, 2.0, 3.0, NAN), 2.5, [1.0, 2.0, 3.0, 2.5]),
        (
            (1, 2, -1, 4),
            (1.0, 2.0, NAN, 4.0),
            0.5,
            [1.0, 2.0, -0.5, 0.5],
        ),  # below the injected GT, which is lowest
        ((-1, -1, -1, -1), (NAN, NAN, NAN, NAN), 2.5, [1.5, 1.5, 1.5, 2.5]),
    ],
)
def test_inject_puts_the_ground_truth_in_the_least_like_place(items, scores, target, rewards):
    result = rewards_of(group(items, scores, target_scores_B=torch.tensor([target])), "inject", 1.0)
    assert result.rewards_BK.tolist() == [rewards]
    assert result.branch_BK.tolist() == [[1, 2, 3, 0]]
    assert result.injected_BK.tolist() == [[False, False, False, True]]


def test_nothing_is_injected_beside_a_hit_or_when_it_could_not_have_been_drawn():
    hit = rewards_of(group((1, 0, 3, 4)), "inject", 1.0)
    assert hit.rewards_BK.tolist() == [[1.0, 2.0, 3.0, 4.0]] and not hit.injected_BK.any()
    assert not rewards_of(group((1, 0, 3, 4)), "inject", 1.0, torch.tensor([True])).injected_BK.any()
    excluded = rewards_of(group((1, 2, 3, 4)), "inject", 1.0, torch.tensor([False]))
    assert excluded.branch_BK.tolist() == [[1, 2, 3, 4]]
    assert rewards_of(group((1, 2, 3, 4)), "inject", 1.0, torch.tensor([True])).injected_BK.any()


def test_least_like_is_the_shortest_common_prefix_then_the_least_likely():
    # common prefixes with (3, 7, 10) are 2, 1, 0, 0 tokens; agreeing later in the item does not count
    assert least_like_target(one_group()).tolist() == [3]
    likely_last = one_group().behaviour_log_probs_BKL.flip(1)
    assert least_like_target(one_group(behaviour_log_probs_BKL=likely_last)).tolist() == [2]
    assert least_like_target(one_group(behaviour_log_probs_BKL=torch.zeros(1, 4, 3))).tolist() == [2]
