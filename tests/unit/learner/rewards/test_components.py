import pytest
import torch

from sluice.catalog.errors import DataError
from sluice.learner.rewards.components import component_values
from sluice.learner.rewards.rewards import group_rewards
from sluice.learner.rewards.settings import (
    DiversityReward,
    HitReward,
    LoggedReward,
    PopularityReward,
    RankerReward,
    RankPenaltyReward,
    RelevanceReward,
)
from tests.unit.learner.learner_cases import NAN, one_group

A, B, C = [3, 7, 11], [3, 8, 10], [5, 7, 10]
PLACES = [-0.3903800, -0.2463024, -0.1951900, -0.1681275]  # -1/log2(k + 2), over the sum 2.5616063


def group(items=(1, 2, 3, 4), scores=(1.0, 2.0, 3.0, 4.0), **changes):
    return one_group(
        candidate_items_BK=torch.tensor([list(items)]),
        candidate_scores_BK=torch.tensor([list(scores)]),
        **changes,
    )


def values(batch, component):
    return component_values(batch, component)[0].tolist()


def tokens(*candidates):
    return torch.tensor([[list(candidate) for candidate in candidates]])


@pytest.mark.parametrize(
    ("transform", "scores", "expected"),
    [
        ("raw", (1.0, -2.0, 3.0, 4.0), [1.0, -2.0, 3.0, 4.0]),
        ("sigmoid", (1.0, 2.0, 3.0, 4.0), [0.7310586, 0.8807971, 0.9525741, 0.9820138]),
        ("rank", (1.0, 4.0, 3.0, 2.0), [0.0, 1.0, 2 / 3, 1 / 3]),
        ("rank", (1.0, 3.0, 3.0, 4.0), [0.0, 0.5, 0.5, 1.0]),  # ties: 1 lower and half of 1, of 3
        ("rank", (2.0, 2.0, 2.0, 2.0), [0.5, 0.5, 0.5, 0.5]),
        ("zscore", (1.0, 2.0, 3.0, 4.0), [-1.1618050, -0.3872683, 0.3872683, 1.1618050]),
        (
            "zscore",
            (0.0, 0.0, 0.0, 0.04),
            [-0.4975124, -0.4975124, -0.4975124, 1.4925373],
        ),  # the floor of 1e-4 shows
        ("zscore", (0.5, 0.5, 0.5, 0.5), [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_ranker(transform, scores, expected):
    assert values(group(scores=scores), RankerReward(transform=transform)) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("ignored", [NAN, 2.5, 99.0])
def test_ranker_transforms_compare_valid_candidates_only(ignored):
    batch = group(items=(1, -1, 3, -1), scores=(1.0, ignored, 3.0, ignored))
    assert values(batch, RankerReward(transform="rank"))[::2] == [0.0, 1.0]
    # mean 2, std sqrt(2)
    assert values(batch, RankerReward(transform="zscore"))[::2] == pytest.approx(
        [-0.7070568, 0.7070568], abs=1e-6
    )
    alone = group(items=(-1, -1, 3, -1), scores=(NAN, ignored, 3.0, NAN))
    assert values(alone, RankerReward(transform="rank"))[2] == 0
    assert values(alone, RankerReward(transform="zscore"))[2] == 0


@pytest.mark.parametrize("transform", ["raw", "sigmoid", "rank", "zscore"])
def test_an_item_without_a_score_stays_visible(transform):
    found = values(group(scores=(1.0, NAN, 3.0, 4.0)), RankerReward(transform=transform))
    assert found[1] != found[1]


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (RelevanceReward(), [1, 1, 0, 0]),  # GT is (3, 7, 10)
        (RelevanceReward(tokens=2), [1, 0, 0, 0]),
        (RelevanceReward(tokens=3), [0, 0, 0, 0]),
        (RelevanceReward(like="history"), [0, 0, 1, 1]),
        (RelevanceReward(like="history", tokens=2), [0, 0, 1, 0]),
    ],
)
def test_relevance(component, expected):
    history = torch.tensor([[1, 4, 7, 11, 5, 9, 10, 0, 0, 0]])
    batch = group(history_BT=history, history_lengths_B=torch.tensor([7]))
    assert values(batch, component) == expected


def test_nothing_is_like_an_empty_history():
    assert values(group(), RelevanceReward(like="history")) == [0, 0, 0, 0]


def test_hit():
    assert values(group(items=(1, 0, -1, 0)), HitReward()) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("items", "changes", "expected"),
    [
        ((1, 0, 3, 4), {}, [PLACES[0], 0, PLACES[2], PLACES[3]]),
        ((0, 2, 3, 4), {}, [0, PLACES[1], PLACES[2], PLACES[3]]),
        ((1, 2, 3, 4), {}, [0, 0, 0, 0]),  # nothing hit
        ((0, 0, 0, -1), {}, [0, 0, 0, PLACES[3]]),
        (
            (1, 2, 3, 0),  # the likelihoods turned round
            {"behaviour_log_probs_BKL": one_group().behaviour_log_probs_BKL.flip(1)},
            [PLACES[3], PLACES[2], PLACES[1], 0],
        ),
        (
            (1, 2, 3, 0),  # all alike: in their order
            {"behaviour_log_probs_BKL": torch.full((1, 4, 3), -1.0)},
            [PLACES[0], PLACES[1], PLACES[2], 0],
        ),
        (
            (1, 1, 3, 0),  # equal candidates share the better place, the next one follows both
            {
                "candidates_BKL": tokens(A, A, B, [3, 7, 10]),
                "behaviour_log_probs_BKL": torch.tensor([[[-1.0], [-1.0], [-2.0], [-3.0]]]).expand(1, 4, 3),
            },
            [PLACES[0], PLACES[0], PLACES[2], 0],
        ),
    ],
)
def test_rank_penalty(items, changes, expected):
    assert values(group(items=items, **changes), RankPenaltyReward()) == pytest.approx(expected, abs=1e-6)


def test_the_penalties_of_a_group_without_the_hit_sum_to_minus_one():
    batch = group(items=(0, 2, 3, 4))
    assert sum(values(batch, RankPenaltyReward())) == pytest.approx(-1 - PLACES[0], abs=1e-6)


@pytest.mark.parametrize(
    ("candidates", "length", "expected"),
    [
        ((A, B, C, [4, 8, 10]), None, [1, 1, 1, 1]),
        ((A, A, C, B), None, [2 / 3, 2 / 3, 1, 1]),
        ((A, A, A, A), None, [0, 0, 0, 0]),
        ((A, B, C, [4, 8, 10]), 1, [2 / 3, 2 / 3, 1, 1]),
        ((A, [3, 7, 12], C, B), 2, [2 / 3, 2 / 3, 1, 1]),
    ],
)
def test_diversity(candidates, length, expected):
    batch = group(candidates_BKL=tokens(*candidates))
    assert values(batch, DiversityReward(tokens=length)) == pytest.approx(expected, abs=1e-6)


def test_popularity():
    batch = group(items=(1, 2, 3, -1), candidate_popularity_BK=torch.tensor([[0.5, 0.01, 0.0, NAN]]))
    assert values(batch, PopularityReward())[:3] == pytest.approx(
        [0.6931472, 4.6051702, 13.8155106], abs=1e-5
    )
    with pytest.raises(DataError, match="candidate_popularity"):
        values(group(), PopularityReward())


def test_logged():
    batch = group(items=(1, 0, -1, 0), logged_rewards_B=torch.tensor([4.0]))
    assert values(batch, LoggedReward()) == [0, 4, 0, 4]
    assert values(group(items=(0, 2, 3, 4), logged_rewards_B=torch.tensor([NAN])), LoggedReward()) == [
        0,
        0,
        0,
        0,
    ]
    with pytest.raises(DataError, match="rating, click or dwell"):
        values(group(), LoggedReward())


def rewards(batch, *components, ground_truth="none", margin=1.0):
    return group_rewards(batch, components, ground_truth, margin)


def test_the_reward_is_the_weighted_sum_and_relevance_multiplies_the_ranker_alone():
    batch = group(items=(1, 2, 0, 4))
    found = rewards(
        batch,
        HitReward(weight=10),
        RelevanceReward(),
        RankerReward(weight=2, transform="sigmoid"),
        DiversityReward(),
    )
    # relevance is 1, 1, 0, 0 and every candidate is alone of its kind
    expected = [2 * 0.7310586 + 1, 2 * 0.8807971 + 1, 10 + 1, 1]
    assert found.rewards_BK[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_default_is_the_raw_score_to_the_bit():
    batch = group(scores=(0.1, 0.2, 0.3, 1e-30))
    assert torch.equal(rewards(batch, RankerReward()).rewards_BK, batch.candidate_scores_BK)


def test_a_hallucination_gets_the_lowest_sum_minus_the_margin():
    batch = group(items=(1, 0, 3, -1), scores=(1.0, 2.0, 3.0, NAN))
    found = rewards(batch, RankerReward(weight=-1), HitReward(weight=5), margin=0.5)
    assert found.rewards_BK[0].tolist() == [-1, 3, -3, -3.5]


def test_each_component_is_reported_before_its_weight_over_the_valid_members():
    batch = group(items=(1, 0, 3, -1), scores=(1.0, 2.0, 6.0, NAN))
    found = rewards(batch, RankerReward(weight=7), HitReward(weight=5)).metrics
    assert set(found) == {"reward/ranker", "reward/hit"}
    assert found["reward/ranker"].tolist() == [9.0, 3.0] and found["reward/hit"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (HitReward(), [0, 0, 0, 1]),
        (RankPenaltyReward(), [PLACES[0], PLACES[1], PLACES[2], 0]),  # on the place of what it replaced
        (RankerReward(transform="rank"), [0, 1 / 3, 1, 2 / 3]),  # GT scores 2.5
        (LoggedReward(), [0, 0, 0, 5]),
        (DiversityReward(tokens=1), [1 / 3, 1 / 3, 1, 1 / 3]),  # GT starts with 3, as two others do
    ],
)
def test_an_injected_ground_truth_is_rewarded_as_itself(component, expected):
    found = rewards(group(logged_rewards_B=torch.tensor([5.0])), component, ground_truth="inject")
    assert found.rewards_BK[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_override_takes_the_maximum_of_the_sum():
    batch = group(items=(0, 2, 3, 4), scores=(1.0, 2.0, 9.0, 4.0))
    assert rewards(batch, RankerReward(weight=2), ground_truth="override").rewards_BK[0].tolist() == [
        18,
        4,
        18,
        8,
    ]
