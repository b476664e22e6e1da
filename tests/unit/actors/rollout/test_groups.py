from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sluice.actors.engines.engine import Generation
from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import Prompt, assemble_groups, read_prompt, score_groups
from sluice.catalog.errors import DataError, RankerError, RunError
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.rollout_group import ROLLOUT_GROUP, decode_group, encode_groups, from_stream, to_stream
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.ranker.contract import check_output, check_scores
from sluice.learner.ranker.output import RankerOutput
from tests.rollout_fakes import CODES, LAYOUT, TinyDataset

VOCABULARY = Vocabulary.of(CODES, LAYOUT)
NO_ITEM = [3, 3, 3]


def prompt(lease_id: int, target: int, excluded=(7,)) -> Prompt:
    return Prompt(
        lease=Lease(lease_id=lease_id, attempt=1, user=lease_id + 100, position=lease_id + 1),
        history=np.arange(1, lease_id + 1, dtype=np.int32),
        whole_history=np.arange(lease_id + 1, dtype=np.int32),
        excluded=np.asarray(excluded, dtype=np.int32),
        target_item=target,
    )


def generation(items: list[int], versions: tuple[int, int] = (2, 3)) -> Generation:
    tokens = np.asarray([LAYOUT.encode(CODES[i]) if i >= 0 else NO_ITEM for i in items], dtype=np.int64)
    log_probs = -np.arange(tokens.size, dtype=np.float32).reshape(tokens.shape)
    low, high = versions
    return Generation(request_id="", tokens=tokens, log_probs=log_probs, version_min=low, version_max=high)


def drawn_batch(distractors: int = 2, seed: int = 5, rows=([0, 0, 1], [2, -1, 3], [1, 4, 4])):
    prompts = [prompt(0, 2), prompt(1, 3), prompt(2, 6)]
    generations = [generation(list(items)) for items in rows]
    return assemble_groups(
        prompts, generations, [0.1, 0.2, 0.3], vocabulary=VOCABULARY, distractors=distractors, seed=seed
    )


def test_candidates_are_looked_up_in_the_trie():
    assert drawn_batch().candidate_items.tolist() == [[0, 0, 1], [2, -1, 3], [1, 4, 4]]


def assembled(prompts, rows, distractors=8):
    generations = [generation(list(items)) for items in rows]
    return assemble_groups(
        prompts, generations, [0.0] * len(rows), vocabulary=VOCABULARY, distractors=distractors, seed=0
    )


def test_a_candidate_that_the_user_has_counts_as_a_hallucination():
    rows = ([0, 1, 1, -1], [1, 2, 3, 0])
    drawn = assembled([prompt(0, 2, excluded=(1, 5)), prompt(1, 3, excluded=(0,))], rows)
    assert drawn.candidate_items.tolist() == [[0, -1, -1, -1], [1, 2, 3, -1]]
    assert drawn.consumed.tolist() == [2, 1]  # a sequence that is no item is not counted
    asked = drawn.items_to_score
    assert 1 not in asked[0] and 0 not in asked[1]  # nor is the ranker asked for them
    scores = RankerOutput.of(np.where(asked < 0, np.nan, asked))
    groups = score_groups(drawn, scores, ranker_version="r", score_s=0)
    back = [decode_group(encode_groups(group)) for group in groups]
    assert [group.consumed for group in back] == [2, 1]
    assert np.isnan(back[0].candidate_scores).tolist() == [False, True, True, True]


def test_what_a_user_has_is_no_distractor_either():
    drawn = assembled([prompt(0, 2, excluded=(4, 5)), prompt(1, 3, excluded=())], ([0, 0], [4, 6]))
    assert [sorted(set(row.tolist()) - {-1}) for row in drawn.distractor_items] == [[6], [0]]


def test_popular_items_are_drawn_more_often_and_rare_ones_at_all():
    shares = np.asarray([0, 0, 0, 0.6, 0.3, 0.1, 0, 0], dtype=np.float32)
    prompts, rows = [prompt(0, 2, excluded=()), prompt(1, 7, excluded=())], ([0, 0, 0, 0], [3, 4, 5, 6])
    first = []
    for seed in range(2000):
        drawn = assemble_groups(
            prompts,
            [generation(items) for items in rows],
            [0.0, 0.0],
            vocabulary=VOCABULARY,
            distractors=1,
            seed=seed,
            draw="popularity",
            shares=shares,
        )
        first.append(drawn.distractor_items[0, 0])
    counts = np.bincount(first, minlength=8) / len(first)
    np.testing.assert_allclose(counts[[3, 4, 5]], [0.6, 0.3, 0.1], atol=0.035)  # three deviations
    everything = assemble_groups(
        prompts,
        [generation(items) for items in rows],
        [0.0, 0.0],
        vocabulary=VOCABULARY,
        distractors=4,
        seed=0,
        draw="popularity",
        shares=shares[:5],  # the catalogue has grown since the data were prepared
    )
    assert sorted(everything.distractor_items[0]) == [3, 4, 5, 6]


@pytest.mark.parametrize(("keep", "expected"), [(1, []), (2, [3, 4]), (3, [3, 4, 5])])
def test_distractors_may_come_from_the_middle_of_the_ranker_s_order(keep, expected):
    prompts, rows = [prompt(0, 2, excluded=()), prompt(1, 7, excluded=())], ([0] * 5, [3, 4, 5, 6, 1])
    drawn = assemble_groups(
        prompts,
        [generation(items) for items in rows],
        [0.0, 0.0],
        vocabulary=VOCABULARY,
        distractors=keep,
        seed=0,
        draw="ranker_middle",
    )
    offered = drawn.distractor_items[0][drawn.distractor_items[0] >= 0]
    assert len(offered) == min(4 * keep, 5) and drawn.keep == keep
    asked = drawn.items_to_score
    scores = np.where(asked < 0, np.nan, asked).astype(np.float32)
    group, _ = score_groups(drawn, RankerOutput.of(scores), ranker_version="r", score_s=0)
    if keep == 1:  # four of the five
        expected = [np.sort(offered)[1]]
    assert sorted(group.distractor_items) == expected
    assert group.distractor_scores.tolist() == group.distractor_items.tolist()


def test_a_prompt_excludes_what_the_user_had_but_never_its_ground_truth():
    lease = Lease(lease_id=0, attempt=1, user=3, position=4)
    data = TinyDataset()
    read = read_prompt(lease, data, NO_GAPS)
    assert read.excluded.tolist() == [3, 4, 5, 6] and read.target_item == 7
    assert read.history.tolist() == [4, 5, 6]
    data.target = lambda user, position: 5  # a film that is seen again
    assert read_prompt(lease, data, NO_GAPS).excluded.tolist() == [3, 4, 6]
    assert read_prompt(lease, TinyDataset(exclude_seen=False), NO_GAPS).excluded.tolist() == []


def test_the_policy_sees_the_gaps_and_the_ranker_does_not():
    lease = Lease(lease_id=0, attempt=1, user=3, position=4)
    gaps = Gaps(most=0.9, seed=3)
    read = read_prompt(lease, TinyDataset(), gaps)
    assert read.whole_history.tolist() == [4, 5, 6] and len(read.history) < 3
    again = Lease(lease_id=0, attempt=2, user=3, position=4)
    assert read_prompt(again, TinyDataset(), gaps).history.tolist() == read.history.tolist()
    assert read.excluded.tolist() == [3, 4, 5, 6]


def test_each_group_is_looked_up_in_the_catalogue_it_was_generated_with():
    newer = VOCABULARY.changed(retire=np.array([1])).after(VOCABULARY)
    old, new = generation([0, 1]), replace(generation([0, 1]), catalogue_version=1)
    prompts = [prompt(0, 2), prompt(1, 3)]
    drawn = assemble_groups(prompts, [old, new], [0.1, 0.2], vocabulary=newer, distractors=1, seed=0)
    assert drawn.candidate_items.tolist() == [[0, 1], [0, -1]]
    groups = score_groups(
        drawn, RankerOutput.of(np.zeros((2, 4), dtype=np.float32)), ranker_version="r", score_s=0.1
    )
    assert [decode_group(encode_groups(group)).catalogue_version for group in groups] == [0, 1]


def test_distractors_come_from_other_prompts_and_are_neither_target_nor_own_candidate():
    # prompt 0 (target 2): others made {2, 3, 1, 4}; less target 2 and own {0, 1} -> {3, 4}
    # prompt 1 (target 3): others made {0, 1, 4};    less own {2, 3}              -> {0, 1, 4}
    # prompt 2 (target 6): others made {0, 1, 2, 3}; less own {1, 4}              -> {0, 2, 3}
    pools = [{3, 4}, {0, 1, 4}, {0, 2, 3}]
    seen = [set(), set(), set()]
    for seed in range(40):
        for row, chosen in enumerate(drawn_batch(seed=seed).distractor_items.tolist()):
            assert len(chosen) == len(set(chosen)) == 2
            seen[row] |= set(chosen)
    assert seen == pools


def test_a_small_pool_gives_fewer_distractors():
    assert (drawn_batch(distractors=3).distractor_items >= 0).sum(axis=1).tolist() == [2, 3, 3]
    lonely = assemble_groups(
        [prompt(0, 2)], [generation([1, 3])], [0.1], vocabulary=VOCABULARY, distractors=3, seed=0
    )
    assert lonely.distractor_items.tolist() == [[-1, -1, -1]]


def test_the_draw_depends_on_seed_and_lease_alone():
    first, again, other = (
        drawn_batch(seed=5),
        drawn_batch(seed=5),
        [drawn_batch(seed=seed) for seed in range(6, 30)],
    )
    assert (first.distractor_items == again.distractor_items).all()
    assert any((o.distractor_items[1] != first.distractor_items[1]).any() for o in other)


def test_the_ranker_is_asked_for_each_item_once_and_the_target_first():
    drawn = drawn_batch(distractors=3)
    assert drawn.items_to_score.shape == (3, 1 + 3 + 3)
    d0, d1, d2 = (row[row >= 0].tolist() for row in drawn.distractor_items)
    assert drawn.items_to_score.tolist() == [
        [2, 0, 1, *d0, -1, -1],
        [3, 2, *d1, -1, -1],  # its own target among the candidates is not asked for again
        [6, 1, 4, *d2, -1],
    ]
    assert [history.tolist() for history in drawn.histories] == [[0], [0, 1], [0, 1, 2]]


def test_scores_go_back_to_every_place_an_item_has():
    drawn = drawn_batch()
    asked = drawn.items_to_score
    scores = np.where(asked < 0, np.nan, asked * 10 + np.arange(3)[:, None]).astype(np.float32)
    spread = np.where(asked < 0, np.nan, asked / 10).astype(np.float32)
    groups = score_groups(
        drawn, RankerOutput.of(scores, spread, spread * 1000), ranker_version="r1", score_s=0.5
    )
    np.testing.assert_array_equal(groups[0].candidate_scores, [0, 0, 10])
    np.testing.assert_array_equal(groups[1].candidate_scores, [21, np.nan, 31])
    np.testing.assert_array_equal(groups[2].candidate_scores, [12, 42, 42])
    assert [group.target_score for group in groups] == [20, 31, 62]
    np.testing.assert_allclose(groups[1].candidate_spread, [0.2, np.nan, 0.3], rtol=1e-6)
    np.testing.assert_allclose(groups[1].candidate_values, [200, np.nan, 300], rtol=1e-6)
    assert [group.target_spread for group in groups] == pytest.approx([0.2, 0.3, 0.6])
    assert [group.target_value for group in groups] == pytest.approx([200, 300, 600])
    for row, group in enumerate(groups):
        np.testing.assert_array_equal(group.distractor_scores, group.distractor_items * 10 + row)
    last = groups[2]
    assert (last.lease_id, last.user, last.position, last.target_item) == (2, 102, 3, 6)
    assert (last.version_min, last.version_max, last.ranker_version) == (2, 3, "r1")
    assert (last.generate_s, last.score_s) == (0.3, 0.5)


def test_trust_goes_to_each_group():
    drawn = drawn_batch()
    output = RankerOutput.of(np.where(drawn.items_to_score < 0, np.nan, 1.0))
    assert drawn.examples.users.tolist() == [100, 101, 102]
    assert drawn.examples.positions.tolist() == [1, 2, 3]
    trusted = replace(output, trust=np.array([0.25, np.nan, 0.75], dtype=np.float32))
    of_groups = [g.trust for g in score_groups(drawn, trusted, ranker_version="r", score_s=0)]
    np.testing.assert_array_equal(of_groups, [0.25, np.nan, 0.75])
    assert [g.trust for g in score_groups(drawn, output, ranker_version="r", score_s=0)] == [None] * 3


@pytest.mark.parametrize("trust", [None, 0.625, np.nan])
def test_trust_survives_the_wire_known_unknown_and_unasked(trust):
    again = decode_group(from_stream(to_stream(encode_groups(replace(groups()[0], trust=trust)))))
    assert again.trust == pytest.approx(trust, nan_ok=True)


def test_groups_of_the_wrong_shape_are_the_engine_s_fault():
    with pytest.raises(RunError, match=r"shapes \[\(2, 3\), \(3, 3\)\]"):
        drawn_batch(rows=([0, 0], [2, 3, 4], [1, 4, 4]))


def groups():
    drawn = drawn_batch()
    asked = drawn.items_to_score
    scores = np.where(asked < 0, np.nan, asked).astype(np.float32)
    return score_groups(drawn, RankerOutput.of(scores, scores / 8, None), ranker_version="r1", score_s=0.5)


def test_a_group_survives_the_wire():
    for group in groups():
        record = encode_groups(group)
        assert (record.num_rows, record.schema) == (1, ROLLOUT_GROUP)
        back = decode_group(record)
        for name in type(group).__dataclass_fields__:
            mine, theirs = getattr(group, name), getattr(back, name)
            if isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, theirs)
                assert mine.shape == theirs.shape
            else:
                assert mine == pytest.approx(theirs, nan_ok=True), name
        assert np.isnan(back.target_value) and np.isnan(back.candidate_values).all()


def test_groups_encoded_together_are_those_encoded_alone():
    made = groups()
    made += [
        replace(made[0], excluded=np.arange(3, dtype=np.int32), history=made[0].history[:1], lease_id=77)
    ]
    together = encode_groups(*made)
    assert together.num_rows == len(made) > 2
    read = from_stream(to_stream(together))
    assert read.schema.equals(together.schema, check_metadata=True)
    assert repr(read.to_pylist()) == repr(together.to_pylist())
    for row, group in enumerate(made):
        assert repr(together.slice(row, 1).to_pylist()) == repr(
            encode_groups(group).to_pylist()
        )  # NaN is not NaN
        assert decode_group(together.slice(row, 1)).lease_id == group.lease_id


def test_inclusion_probabilities_travel_with_stochastic_beams_only():
    assert all(decode_group(encode_groups(group)).inclusion_log_probs.shape == (0,) for group in groups())
    inclusion = np.asarray([-0.5, -3], dtype=np.float32)
    drawn = assemble_groups(
        [prompt(0, 2)],
        [replace(generation([1, 3]), inclusion_log_probs=inclusion)],
        [0.1],
        vocabulary=VOCABULARY,
        distractors=1,
        seed=0,
    )
    (group,) = score_groups(
        drawn, RankerOutput.of(np.asarray([[2, 1, 3, np.nan]])), ranker_version="r", score_s=0
    )
    assert decode_group(encode_groups(group)).inclusion_log_probs.tolist() == [-0.5, -3]
    with pytest.raises(DataError, match=r"inclusion_log_probs has shape \(1,\), expected \(2,\)"):
        encode_groups(replace(group, inclusion_log_probs=inclusion[:1]))


def test_nan_scores_travel_as_nan_not_null():
    record = encode_groups(groups()[1])
    assert record.column("candidate_scores").flatten().null_count == 0


def test_a_group_without_distractors_survives_the_wire():
    lonely = assemble_groups(
        [prompt(0, 2)], [generation([1, 3])], [0.1], vocabulary=VOCABULARY, distractors=3, seed=0
    )
    scores = RankerOutput.of(np.asarray([[2, 1, 3, np.nan, np.nan, np.nan]]))
    (group,) = score_groups(lonely, scores, ranker_version="r", score_s=0)
    assert decode_group(encode_groups(group)).distractor_scores.shape == (0,)


def test_a_group_of_another_version_is_refused():
    record = encode_groups(groups()[0])
    for metadata, found in (({b"sluice.rollout_group": b"99"}, "99"), (None, "none")):
        other = pa.RecordBatch.from_arrays(record.columns, schema=record.schema.with_metadata(metadata))
        with pytest.raises(DataError, match=f"schema version {found}, this release reads 4"):
            decode_group(other)


def test_malformed_groups_are_refused():
    group = groups()[0]
    with pytest.raises(DataError, match=r"candidate_scores has shape \(2,\), expected \(3,\)"):
        encode_groups(type(group)(**{**vars(group), "candidate_scores": group.candidate_scores[:2]}))
    with pytest.raises(DataError, match="NaN exactly where candidate_items is -1"):
        encode_groups(
            type(group)(**{**vars(group), "candidate_items": np.asarray([0, 0, -1], dtype=np.int32)})
        )
    with pytest.raises(DataError, match="candidate_spread must be NaN exactly where candidate_items is -1"):
        encode_groups(type(group)(**{**vars(group), "target_spread": np.nan}))
    with pytest.raises(DataError, match="candidate_values must be NaN exactly where candidate_items is -1"):
        encode_groups(type(group)(**{**vars(group), "target_value": 1.0}))
    record = encode_groups(group)
    with pytest.raises(DataError, match=r"got 2 row\(s\)"):
        decode_group(pa.Table.from_batches([record, record]).combine_chunks().to_batches()[0])
    position = record.schema.get_field_index("candidate_tokens")
    cut = record.set_column(
        position, record.schema.field(position), pa.array([[3, 5]], type=pa.list_(pa.int32()))
    )
    with pytest.raises(
        DataError, match="candidate_tokens has 2 values, which is no multiple of its 3 candidates"
    ):
        decode_group(cut)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0]], "shape"),
        ([[1.0, 2.0, 3.0]], r"gave 3.0 to item -1 \(row 0, column 2\)"),
        ([[1.0, np.nan, np.nan]], r"gave nan to item 4 \(row 0, column 1\)"),
        ([[1.0, np.inf, np.nan]], r"gave inf to item 4 \(row 0, column 1\)"),
        ([[1.0, 2.0, np.inf]], r"gave inf to item -1"),
    ],
)
def test_wrong_scores_are_the_ranker_s_fault(scores, message):
    candidates = np.asarray([[3, 4, -1]], dtype=np.int32)
    with pytest.raises(RankerError, match=message):
        check_scores(candidates, np.asarray(scores))
    assert check_scores(candidates, np.asarray([[1.0, 2.0, np.nan]])).dtype == np.float32


NAN = np.nan


@pytest.mark.parametrize(
    ("spread", "values", "message"),
    [
        (
            [[0.0, 1.0, 2.0]],
            None,
            r"spread of the ranker's predict: .*gave 2.0 to item -1 .* or NaN everywhere",
        ),
        ([[0.0, NAN, NAN]], None, r"spread of the ranker's predict: .*gave nan to item 4"),
        (None, [[NAN, 1.0, NAN]], r"values of the ranker's predict: .*gave nan to item 3"),
        (None, [[np.inf, 1.0, NAN]], r"values of the ranker's predict: .*gave inf to item 3"),
        (
            [[0.0, 1.0]],
            None,
            r"spread of the ranker's predict: .*shape \(1, 2\) to candidates of shape \(1, 3\)",
        ),
        ([[NAN, NAN]], None, r"spread of the ranker's predict: .*shape"),
        ([[0.5, -0.25, NAN]], None, r"gave the spread -0.25; a deviation is 0 or more"),
    ],
)
def test_a_wrong_assessment_is_the_ranker_s_fault(spread, values, message):
    candidates, scores = np.asarray([[3, 4, -1]], dtype=np.int32), np.asarray([[1.0, 2.0, NAN]])
    as_array = (None if given is None else np.asarray(given) for given in (spread, values))
    with pytest.raises(RankerError, match=message):
        check_output(candidates, RankerOutput.of(scores, *as_array))


def test_a_right_assessment_passes_as_float32():
    candidates, scores = np.asarray([[3, 4, -1]], dtype=np.int32), np.asarray([[1.0, 2.0, NAN]])
    found = check_output(candidates, RankerOutput.of(scores, spread=scores / 2))
    np.testing.assert_array_equal(found.spread, [[0.5, 1.0, NAN]])
    assert np.isnan(found.values).all()
    assert found.scores.dtype == found.spread.dtype == found.values.dtype == np.float32
