import pytest
import torch

from sluice.learner.gate.gate import (
    compute_gate,
    distractor_margins,
    distractors_below,
    policy_rank,
    ranker_rank,
    whole_places,
)
from sluice.learner.gate.settings import GateSettings
from tests.unit.learner.learner_cases import FOUR_BEAMS, NAN, one_group, random_batch

GT = [3, 7, 10]
CANDIDATES = [[3, 7, 11], [3, 8, 10], [4, 7, 10], [5, 7, 10]]


def below_of(batch, settings):
    return distractors_below(distractor_margins(batch, settings))


def with_candidates(tokens, items, **changes):
    return one_group(
        candidates_BKL=torch.tensor([tokens]), candidate_items_BK=torch.tensor([items]), **changes
    )


@pytest.mark.parametrize(
    ("target", "rank"),
    [
        (-0.5, 1),
        (-1.5, 2),
        (-2.5, 3),
        (-9.0, 5),
        (-2.0, 2),
    ],  # the last ties with a candidate and keeps the better place
)
def test_policy_rank_of_samples(target, rank):
    assert policy_rank(one_group(), torch.tensor([target])).tolist() == [rank]


def test_policy_rank_counts_equal_candidates_once():
    twice = [CANDIDATES[0], CANDIDATES[0], CANDIDATES[2], CANDIDATES[3]]
    assert policy_rank(with_candidates(twice, [1, 1, 3, 4]), torch.tensor([-2.5])).tolist() == [2]


def test_policy_rank_does_not_count_the_ground_truth_as_its_own_rival():
    hit = [GT, *CANDIDATES[1:]]  # drawn at -1, above the teacher-forced -2.5
    assert policy_rank(with_candidates(hit, [0, 2, 3, 4]), torch.tensor([-2.5])).tolist() == [2]


def test_policy_rank_counts_hallucinations():
    batch = one_group(candidate_items_BK=torch.tensor([[-1, 2, 3, 4]]))
    assert policy_rank(batch, torch.tensor([-2.5])).tolist() == [3]


@pytest.mark.parametrize(("place", "rank"), [(0, 1), (2, 3), (3, 4), (None, 5)])
def test_policy_rank_of_beams_is_the_place_among_them(place, rank):
    tokens, items = [list(row) for row in CANDIDATES], [1, 2, 3, 4]
    if place is not None:
        tokens[place], items[place] = GT, 0
    batch = with_candidates(tokens, items, decoding=FOUR_BEAMS)
    assert policy_rank(batch, torch.tensor([99.0])).tolist() == [rank]


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ({}, 3),  # 3 and 4 score above 2.5
        ({"target_scores_B": torch.tensor([3.0])}, 2),  # a tie keeps the better place
        ({"target_scores_B": torch.tensor([0.5])}, 5),
        (
            {"candidate_items_BK": torch.tensor([[1, 2, 3, -1]])},
            2,
        ),  # a hallucination is no rival, whatever its score
        ({"candidate_items_BK": torch.tensor([[1, 2, 3, 0]])}, 2),  # nor is GT itself
        (
            {"candidates_BKL": torch.tensor([[*CANDIDATES[:3], CANDIDATES[2]]])},
            2,
        ),  # equal candidates count once
    ],
)
def test_ranker_rank(changes, rank):
    assert ranker_rank(one_group(**changes)).tolist() == [rank]


# The pool is {2.5} + {1, 2, 3, 4} + distractors; K = 4, so rho 0.5 is 2 places.
@pytest.mark.parametrize(
    ("distractors", "rho", "below"),
    [
        ([0.0], 0.5, True),  # rank 6
        ([3.5], 0.5, False),  # rank 2
        ([2.7], 0.5, True),  # rank 3
        ([3.0], 0.5, False),  # ties with the candidate on place 2
        ([0.0], 1.25, True),  # rank 6 > 5
        ([1.5], 1.25, False),  # rank 5
        ([0.0, 3.5], 0.5, False),  # every one must be below
        ([0.0, NAN], 0.5, True),  # padding
        ([3.5, NAN], 0.5, False),
        ([NAN, NAN], 0.5, True),  # nothing to fail with
        ([3.6, 3.5], 0.75, False),  # ranks 2 and 3: distractors outrank one another
    ],
)
def test_distractors_below_the_head(distractors, rho, below):
    batch = one_group(distractor_scores_BJ=torch.tensor([distractors]))
    assert below_of(batch, GateSettings(rho=rho)).tolist() == [below]


@pytest.mark.parametrize(
    ("distractors", "rho", "below"),
    [
        ([0.0], 0.5, True),  # last of 6
        ([1.5], 0.5, True),  # last but one
        ([2.2], 0.5, False),  # third from the end
        ([2.2], 0.75, True),
        ([1.0], 0.25, False),  # ties with a candidate for the places 5 and 6, and is given the 5th
        ([0.0, -1.0], 0.5, True),  # the last two of 7
        ([1.5, 0.0], 0.5, False),  # 1.5 is third from the end
        ([1.5, 0.0], 0.75, True),
        ([0.0, NAN], 0.25, True),  # padding takes no place
    ],
)
def test_distractors_within_the_bottom(distractors, rho, below):
    batch = one_group(distractor_scores_BJ=torch.tensor([distractors]))
    assert below_of(batch, GateSettings(rho=rho, distractor_rule="within_bottom")).tolist() == [below]


def test_hallucinations_are_not_in_the_distractors_pool():
    changes = {"distractor_scores_BJ": torch.tensor([[2.2]])}
    assert below_of(one_group(**changes), GateSettings()).tolist() == [True]  # rank 4: behind 2.5, 3, 4
    changes["candidate_items_BK"] = torch.tensor([[1, 2, -1, -1]])
    assert below_of(one_group(**changes), GateSettings()).tolist() == [False]  # rank 2: behind 2.5


@pytest.mark.parametrize(
    ("fraction", "candidates", "places"),
    [(0.25, 16, 4), (0.3, 16, 4), (0.29, 100, 29), (0.7, 10, 7), (0.05, 16, 0), (1.0, 8, 8), (2.0, 8, 16)],
)
def test_whole_places(fraction, candidates, places):
    assert whole_places(fraction, candidates) == places


@pytest.mark.parametrize(
    ("target_log_prob", "target_score", "distractor", "difficult", "agrees", "below"),
    [
        (-2.5, 3.5, 0.0, True, True, True),  # ranks 3 and 2, head 2
        (-1.5, 3.5, 0.0, False, True, True),  # rank 2: the policy has it in its head
        (-2.5, 2.5, 0.0, True, False, True),  # ranker rank 3
        (-2.5, 3.5, 3.6, True, True, False),  # the distractor is second
        (-2.5, NAN, 0.0, True, False, True),  # the ranker said nothing
    ],
)
def test_gate_is_the_product_of_its_parts(
    target_log_prob, target_score, distractor, difficult, agrees, below
):
    batch = one_group(
        target_scores_B=torch.tensor([target_score]), distractor_scores_BJ=torch.tensor([[distractor]])
    )
    target = torch.tensor([target_log_prob])
    result = compute_gate(batch, target, GateSettings(tau=0.5, rho=0.5))
    assert result.difficulty_B.tolist() == [difficult]
    assert result.ranker_agrees_B.tolist() == [agrees]
    assert result.distractors_below_B.tolist() == [below]
    assert result.discriminability_B.tolist() == [agrees and below]
    assert result.admitted_B.tolist() == [difficult and agrees and below]
    assert result.policy_rank_B.tolist() == [3 if difficult else 2]
    only = {
        part: compute_gate(batch, target, GateSettings(tau=0.5, rho=0.5, parts=part))
        for part in ("difficulty", "discriminability")
    }
    assert only["difficulty"].admitted_B.tolist() == [difficult]
    assert only["discriminability"].admitted_B.tolist() == [agrees and below]


def test_a_ranker_that_scores_everything_alike_is_refused():
    batch = one_group(
        candidate_scores_BK=torch.ones(1, 4),
        target_scores_B=torch.ones(1),
        distractor_scores_BJ=torch.ones(1, 1),
    )
    result = compute_gate(batch, torch.tensor([-9.0]), GateSettings())
    assert result.ranker_agrees_B.tolist() == [True] and result.admitted_B.tolist() == [False]


def test_the_gate_carries_no_gradient_and_prompts_do_not_mix():
    batch = random_batch(prompts=6, candidates=8, seed=3)
    target = torch.linspace(-12, -4, 6).requires_grad_()
    settings = GateSettings(tau=0.5, parts="difficulty")
    result = compute_gate(batch, target, settings)
    assert not result.admitted_B.requires_grad
    for row in range(6):
        alone = {
            name: value[row : row + 1] if isinstance(value := getattr(batch, name), torch.Tensor) else value
            for name in batch.__dataclass_fields__
        }
        single = compute_gate(type(batch)(**alone), target[row : row + 1], settings)
        assert single.policy_rank_B.item() == result.policy_rank_B[row]
        assert single.ranker_rank_B.item() == result.ranker_rank_B[row]
        assert single.distractors_below_B.item() == result.distractors_below_B[row]
