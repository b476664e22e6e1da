"""The trie's logits processor, driven as vLLM drives it: rows added, removed, swapped, moved, resumed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sluice.catalog.trie.trie import Trie

pytestmark = pytest.mark.engine

# Tokens:     level 1: 0 1    level 2: 2 3    level 3: 4 5
ITEMS = np.asarray([[0, 2, 4], [0, 2, 5], [0, 3, 4], [1, 3, 5]])
FREE = None


@pytest.fixture
def processor(tmp_path, vllm_environment):
    from sluice.actors.engines.vllm.trie import TRIE_PATH, TrieLogitsProcessor

    Trie.build(ITEMS, 6).save(tmp_path / "trie.npz")
    config = SimpleNamespace(
        additional_config={TRIE_PATH: str(tmp_path / "trie.npz")},
        scheduler_config=SimpleNamespace(max_num_seqs=8),
    )
    return TrieLogitsProcessor(config, torch.device("cpu"), False)


def update(processor, size, added=(), removed=(), moved=()):
    """`added` holds (row, excluded item rows or FREE, output list) or, with a fourth field, the node to go on
    from.
    """
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    from sluice.actors.engines.vllm.trie import trie_constraint

    rows = []
    for row, excluded, outputs, *node in added:
        extra = (
            None
            if excluded is FREE
            else trie_constraint(*(node or [0]), np.asarray(excluded, dtype=np.int32))
        )
        rows.append((row, SimpleNamespace(extra_args=extra), [9, 9], outputs))
    processor.update_state(BatchUpdate(batch_size=size, removed=removed, added=rows, moved=moved))


def allowed(processor, size):
    """The tokens that stay possible in each row; logits that stay must be untouched."""
    before = torch.arange(size * 6, dtype=torch.float32).reshape(size, 6)
    after = processor.apply(before.clone())
    kept = torch.isfinite(after)
    assert torch.equal(after[kept], before[kept])
    return [torch.nonzero(row).flatten().tolist() for row in kept]


def test_rows_walk_their_own_way(processor):
    first, second, third = [], [], []
    update(processor, 3, [(0, [], first), (1, FREE, second), (2, [], third)])
    assert allowed(processor, 3) == [[0, 1], [0, 1, 2, 3, 4, 5], [0, 1]]
    first.append(0)
    third.append(1)
    processor.update_state(None)
    assert allowed(processor, 3) == [[2, 3], [0, 1, 2, 3, 4, 5], [3]]
    first.append(2)
    third.append(3)
    assert allowed(processor, 3) == [[4, 5], [0, 1, 2, 3, 4, 5], [5]]


def test_a_batch_of_constrained_rows_alone_is_masked_in_place(processor):
    update(processor, 2, [(0, [], []), (1, [], [0])])
    logits = torch.zeros(2, 6)
    assert processor.apply(logits) is logits
    assert torch.isfinite(logits).tolist() == [
        [True, True, False, False, False, False],
        [False, False, True, True, False, False],
    ]


def test_a_prefill_step_without_a_new_token_does_not_advance(processor):
    update(processor, 1, [(0, [], [0])])
    assert allowed(processor, 1) == [[2, 3]]
    assert allowed(processor, 1) == [[2, 3]]


def test_exclusions_are_per_row(processor):
    update(processor, 4, [(0, [3], []), (1, [0, 1], [0]), (2, [], [0]), (3, [2], [0, 2])])
    assert allowed(processor, 4) == [[0], [3], [2, 3], [4, 5]]
    # A later row with a new set of exclusions renumbers the sets; the others must keep theirs.
    update(processor, 5, [(4, [0, 1, 2], [])])
    assert allowed(processor, 5) == [[0], [3], [2, 3], [4, 5], [1]]


def test_sets_of_excluded_items_are_forgotten_with_their_rows(processor):
    update(processor, 2, [(0, [3], []), (1, [2], [])])
    for item in (0, 1, 2, 3):
        update(processor, 2, [(1, [item], [])], removed=[1])
    assert [len(catalogue.numbers) for catalogue in processor._catalogues.values()] == [2]
    assert allowed(processor, 2) == [[0], [0]]


def test_a_resumed_row_catches_up_with_all_its_tokens(processor):
    outputs = []
    update(processor, 1, [(0, [], outputs)])
    assert allowed(processor, 1) == [[0, 1]]
    outputs.append(0)
    update(processor, 0, removed=[0])
    update(processor, 1, [(0, [], [0, 2])])
    assert allowed(processor, 1) == [[4, 5]]


def test_a_row_may_start_below_the_root(processor):
    node = int(Trie.build(ITEMS, 6).walk(np.asarray([0, 2]))[2])
    update(processor, 1, [(0, [1], [], node)])
    assert allowed(processor, 1) == [[4]]


def test_rows_swap_and_move_with_everything_they_have(processor):
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality

    walked, excluding = [0], []
    update(processor, 3, [(0, [2], walked), (1, FREE, []), (2, [3], excluding)])
    assert allowed(processor, 3) == [[2], [0, 1, 2, 3, 4, 5], [0]]
    update(processor, 3, moved=[(0, 2, MoveDirectionality.SWAP)])
    assert allowed(processor, 3) == [[0], [0, 1, 2, 3, 4, 5], [2]]
    walked.append(2)
    excluding.append(0)
    update(processor, 2, removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)])
    assert allowed(processor, 2) == [[2, 3], [4, 5]]
    update(processor, 3, [(2, FREE, [])])
    assert allowed(processor, 3)[2] == [0, 1, 2, 3, 4, 5]


def test_a_removed_row_masks_nothing_and_its_slot_serves_a_free_request(processor):
    update(processor, 2, [(0, [], []), (1, [], [0])])
    update(processor, 2, [(0, FREE, [])], removed=[0])
    assert allowed(processor, 2) == [[0, 1, 2, 3, 4, 5], [2, 3]]


def test_the_mask_changes_the_likeliest_token(processor):
    assert not processor.is_argmax_invariant()
