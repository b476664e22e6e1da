from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import DataError, RunError
from sluice.catalog.rollout_group import RolloutGroup, encode_groups
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.collate import collate_groups, collate_logged
from tests.rollout_fakes import CODES, LAYOUT, TinyDataset

VOCABULARY = Vocabulary.of(CODES, LAYOUT)
# Tokens: BOS 1, PAD 0; item 0 = 3 5 7, item 1 = 3 5 8, item 2 = 3 6 7, item 3 = 3 6 8, item 4 = 4 5 7, item 7
# = 4 6 8.


def group(**changes) -> RolloutGroup:
    fields = {
        "lease_id": 11,
        "user": 0,
        "position": 1,
        "history": np.asarray([4], dtype=np.int32),
        "excluded": np.asarray([4], dtype=np.int32),
        "target_item": 2,
        "candidate_tokens": np.asarray([[3, 5, 7], [3, 6, 7]], dtype=np.int32),
        "behaviour_log_probs": np.asarray([[-1, -2, -3], [-4, -5, -6]], dtype=np.float32),
        "inclusion_log_probs": np.empty(0, dtype=np.float32),
        "candidate_items": np.asarray([0, 2], dtype=np.int32),
        "candidate_scores": np.asarray([0.5, 0.75], dtype=np.float32),
        "target_score": 0.75,
        "candidate_spread": np.asarray([0.25, 0.5], dtype=np.float32),
        "target_spread": 0.5,
        "candidate_values": np.asarray([np.nan, np.nan], dtype=np.float32),
        "target_value": np.nan,
        "distractor_items": np.asarray([7], dtype=np.int32),
        "distractor_scores": np.asarray([0.125], dtype=np.float32),
        "version_min": 1,
        "version_max": 2,
        "ranker_version": "r",
        "generate_s": 0.1,
        "score_s": 0.2,
    }
    return RolloutGroup(**(fields | changes))


OTHER = group(
    lease_id=12,
    history=np.asarray([1, 7], dtype=np.int32),
    excluded=np.asarray([1, 7], dtype=np.int32),
    target_item=3,
    candidate_tokens=np.asarray([[3, 3, 3], [4, 5, 7]], dtype=np.int32),
    candidate_items=np.asarray([-1, 4], dtype=np.int32),
    candidate_scores=np.asarray([np.nan, 0.25], dtype=np.float32),
    target_score=0.375,
    candidate_spread=np.asarray([np.nan, 0.125], dtype=np.float32),
    target_spread=2.0,
    distractor_items=np.asarray([2, 0, 6], dtype=np.int32),
    distractor_scores=np.asarray([1, 2, 3], dtype=np.float32),
)


def collated(*groups: RolloutGroup, constrained: bool = False):
    decoding = Decoding(candidates=2, constrained=constrained, temperature=0.7)
    return collate_groups([encode_groups(one) for one in groups], TinyDataset(), VOCABULARY, decoding)


def test_histories_are_prompts_padded_on_the_right():
    batch = collated(group(), OTHER)
    assert batch.history_BT.tolist() == [[1, 4, 5, 7, 0, 0, 0], [1, 3, 5, 8, 4, 6, 8]]
    assert batch.history_lengths_B.tolist() == [4, 7]
    assert batch.target_BL.tolist() == [[3, 6, 7], [3, 6, 8]]
    assert batch.prompts == 2


def test_candidates_and_scores_keep_their_places():
    batch = collated(group(), OTHER)
    assert batch.candidates_BKL.tolist() == [[[3, 5, 7], [3, 6, 7]], [[3, 3, 3], [4, 5, 7]]]
    assert batch.behaviour_log_probs_BKL[0].tolist() == [[-1, -2, -3], [-4, -5, -6]]
    assert batch.candidate_items_BK.tolist() == [[0, 2], [-1, 4]]
    assert batch.valid_BK.tolist() == [[True, True], [False, True]]
    assert batch.hit_BK.tolist() == [[False, True], [False, False]]
    assert batch.target_items_B.tolist() == [2, 3]
    assert batch.target_scores_B.tolist() == [0.75, 0.375]
    np.testing.assert_array_equal(batch.candidate_scores_BK, [[0.5, 0.75], [np.nan, 0.25]])
    np.testing.assert_array_equal(batch.distractor_scores_BJ, [[0.125, np.nan, np.nan], [1, 2, 3]])
    assert (batch.decoding, batch.allowed_BSLV) == (Decoding(candidates=2, temperature=0.7), None)
    assert (batch.candidates_BKL.dtype, batch.candidate_scores_BK.dtype) == (torch.int64, torch.float32)
    assert batch.inclusion_log_probs_BK is None


def test_inclusion_probabilities_keep_their_places():
    first = replace(group(), inclusion_log_probs=np.asarray([-0.5, 0], dtype=np.float32))
    second = replace(OTHER, inclusion_log_probs=np.asarray([-2, -0.25], dtype=np.float32))
    inclusion_BK = collated(first, second).inclusion_log_probs_BK
    assert inclusion_BK.tolist() == [[-0.5, 0], [-2, -0.25]] and inclusion_BK.dtype == torch.float32
    with pytest.raises(DataError, match="1 of 2 groups carry inclusion probabilities"):
        collated(first, OTHER)


def test_what_the_ranker_and_the_data_know_beside_the_scores():
    batch = collated(group(user=3, position=4), OTHER)
    np.testing.assert_array_equal(batch.candidate_spread_BK, [[0.25, 0.5], [np.nan, 0.125]])
    assert batch.target_spread_B.tolist() == [0.5, 2.0]
    assert batch.candidate_values_BK is None and batch.target_values_B is None
    assert batch.logged_rewards_B.tolist() == [34, 1]  # 10 * user + position
    np.testing.assert_allclose(batch.candidate_popularity_BK, [[0, 2 / 28], [np.nan, 4 / 28]], rtol=1e-6)
    valued = {"candidate_values": np.asarray([3, 4], dtype=np.float32), "target_value": 5.0}
    unsure = {"candidate_spread": np.asarray([np.nan, np.nan], dtype=np.float32), "target_spread": np.nan}
    batch = collated(group(**valued, **unsure))
    assert batch.candidate_values_BK.tolist() == [[3, 4]] and batch.target_values_B.tolist() == [5]
    assert batch.candidate_spread_BK is None and batch.target_spread_B is None
    for tensor in (batch.candidate_values_BK, batch.logged_rewards_B, batch.candidate_popularity_BK):
        assert tensor.dtype == torch.float32


def test_an_item_newer_than_the_data_set_was_never_consumed():
    batch = collated(
        group(candidate_items=np.asarray([8, 2], dtype=np.int32))
    )  # the data set has the rows 0 to 7
    np.testing.assert_allclose(batch.candidate_popularity_BK, [[0, 2 / 28]], rtol=1e-6)


def test_groups_of_rankers_that_know_different_things_do_not_mix():
    unsure = {"candidate_spread": np.asarray([np.nan, np.nan], dtype=np.float32), "target_spread": np.nan}
    with pytest.raises(DataError, match="the ranker gave a target_spread to 1 of 2 groups"):
        collated(group(), group(**unsure))


def test_without_a_logged_reward_the_batch_has_none(monkeypatch):
    monkeypatch.setattr(TinyDataset, "logged_rewards", lambda self, users, positions: None)
    assert collated(group()).logged_rewards_B is None
    examples = SimpleNamespace(users=np.asarray([0]), positions=np.asarray([1]))
    assert collate_logged(TinyDataset(), examples, VOCABULARY).logged_rewards_B is None


def test_constrained_batches_carry_the_mask_of_every_branch():
    batch = collated(group(excluded=np.asarray([1, 4, 5, 6, 7], dtype=np.int32)), constrained=True)
    assert batch.allowed_BSLV.shape == (1, 3, 3, LAYOUT.vocab_size)
    allowed = [
        [torch.nonzero(step).flatten().tolist() for step in branch] for branch in batch.allowed_BSLV[0]
    ]
    assert allowed == [
        [[3], [5, 6], [7, 8]],  # target 3 6 7; all of 4 .. is excluded
        [[3], [5, 6], [7]],  # candidate 3 5 7; item 1 = 3 5 8 is excluded
        [[3], [5, 6], [7, 8]],  # candidate 3 6 7
    ]


def test_each_prompt_has_its_own_exclusions():
    second = replace(
        OTHER, candidate_tokens=np.asarray([[3, 5, 7], [4, 5, 7]]), candidate_items=np.asarray([0, 4])
    )
    second = replace(second, candidate_scores=np.asarray([0.5, 0.25], dtype=np.float32))
    second = replace(second, candidate_spread=np.asarray([0.5, 0.25], dtype=np.float32))
    batch = collated(group(), second, constrained=True)
    last = [torch.nonzero(batch.allowed_BSLV[row, 1, 2]).flatten().tolist() for row in range(2)]
    assert last == [[7, 8], [7]]  # both candidates are 3 5 7; only the second prompt excludes item 1 = 3 5 8


def test_the_target_is_allowed_even_when_it_was_consumed_before():
    batch = collated(
        group(
            excluded=np.asarray([2, 3, 4], dtype=np.int32),
            candidate_tokens=np.asarray([[3, 5, 7], [3, 5, 8]], dtype=np.int32),
            candidate_items=np.asarray([0, 1], dtype=np.int32),
        ),
        constrained=True,
    )
    steps = [torch.nonzero(step).flatten().tolist() for step in batch.allowed_BSLV[0, 0]]
    assert steps == [[3, 4], [5, 6], [7]]  # 6 and the 7 below it only for the target's sake


def test_a_candidate_that_its_decoding_forbade_is_an_error():
    with pytest.raises(
        RunError, match="lease 11: token 5 at level 1 of candidate 0 lies outside the trie mask"
    ):
        collated(group(excluded=np.asarray([0, 1], dtype=np.int32)), constrained=True)


def test_every_group_is_masked_by_the_catalogue_it_was_generated_with():
    newer = VOCABULARY.changed(retire=np.array([1])).after(VOCABULARY)  # item 1 = 3 5 8
    first = group(excluded=np.asarray([], dtype=np.int32))
    second = replace(
        first, lease_id=12, catalogue_version=1, excluded=np.asarray([3], dtype=np.int32)
    )  # 3 6 8
    records, decoding = (
        [encode_groups(first), encode_groups(second)],
        Decoding(candidates=2, constrained=True),
    )
    batch = collate_groups(records, TinyDataset(), newer, decoding)
    last = [torch.nonzero(batch.allowed_BSLV[row, 1, 2]).flatten().tolist() for row in range(2)]
    assert last == [[7, 8], [7]]  # behind 3 5
    last = [torch.nonzero(batch.allowed_BSLV[row, 2, 2]).flatten().tolist() for row in range(2)]
    assert last == [[7, 8], [7]]  # behind 3 6
    with pytest.raises(RunError, match=r"catalogue version 1, known here are \[0\]"):
        collate_groups(records, TinyDataset(), VOCABULARY, decoding)


def test_groups_of_different_decodings_do_not_mix():
    wide = group(
        candidate_tokens=np.zeros((3, 3), dtype=np.int32),
        behaviour_log_probs=np.zeros((3, 3), dtype=np.float32),
        candidate_items=np.asarray([0, 0, 0], dtype=np.int32),
        candidate_scores=np.zeros(3, dtype=np.float32),
        candidate_spread=np.zeros(3, dtype=np.float32),
        candidate_values=np.full(3, np.nan, dtype=np.float32),
    )
    with pytest.raises(DataError, match=r"\[\(2, 3\), \(3, 3\)\]"):
        collated(group(), wide)


def test_logged_batches_come_straight_from_the_data():
    examples = SimpleNamespace(users=np.asarray([0, 2]), positions=np.asarray([1, 4]))
    batch = collate_logged(TinyDataset(max_history=2), examples, VOCABULARY)
    assert batch.history_BT.tolist() == [
        [1, 3, 5, 7, 0, 0, 0],
        [1, 4, 5, 7, 4, 5, 8],
    ]  # items 0; 4 and 5 of 2, 3, 4, 5
    assert batch.history_lengths_B.tolist() == [4, 7]
    assert batch.target_BL.tolist() == [[3, 5, 8], [4, 6, 7]]  # items 1 and 6
    assert batch.logged_rewards_B.tolist() == [1, 24]


def test_trust_is_of_all_groups_or_of_none_and_may_be_unknown():
    assert collated(group(), OTHER).trust_B is None
    batch = collated(group(trust=0.625), replace(OTHER, trust=np.nan))
    assert batch.trust_B.dtype == torch.float32
    np.testing.assert_array_equal(batch.trust_B.numpy(), [0.625, np.nan])
    assert np.isnan(collated(group(trust=np.nan)).trust_B.numpy()).all()
    with pytest.raises(DataError, match="1 of 2 groups of a batch carry the trust of"):
        collated(group(trust=0.625), OTHER)
