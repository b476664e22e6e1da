import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sluice.catalog.errors import DataError
from sluice.catalog.trie.arrays import DEAD
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.trie import Trie

VOCAB = 6

catalogues = st.integers(1, 4).flatmap(
    lambda levels: st.lists(
        st.tuples(*[st.integers(0, VOCAB - 1)] * levels), min_size=1, max_size=40, unique=True
    ).map(lambda rows: np.array(rows, dtype=np.int64))
)


def allowed_by_hand(items: np.ndarray, prefix: tuple[int, ...], excluded: set[int]) -> set[int]:
    depth = len(prefix)
    if depth == items.shape[1]:
        return set()
    return {
        int(row[depth]) for i, row in enumerate(items) if i not in excluded and tuple(row[:depth]) == prefix
    }


def prefixes_of(items: np.ndarray) -> list[tuple[int, ...]]:
    return sorted({tuple(row[:depth].tolist()) for row in items for depth in range(items.shape[1] + 1)})


def node_of(trie: Trie, prefix: tuple[int, ...]) -> int:
    return int(trie.walk(np.array(prefix, dtype=np.int64))[-1])


@given(items=catalogues)
def test_every_item_is_found_by_its_tokens(items):
    trie = Trie.build(items, VOCAB)
    assert trie.lookup(items).tolist() == list(range(len(items)))
    assert trie.items == len(items)
    assert trie.nodes == len(prefixes_of(items))
    assert (trie.leaf_item[trie.item_leaf] == np.arange(len(items))).all()


@given(items=catalogues, data=st.data())
def test_lookup_of_any_sequence_agrees_with_a_search(items, data):
    trie = Trie.build(items, VOCAB)
    levels = items.shape[1]
    asked = data.draw(st.lists(st.tuples(*[st.integers(0, VOCAB - 1)] * levels), min_size=1, max_size=30))
    rows = {tuple(row): i for i, row in enumerate(items.tolist())}
    assert trie.lookup(np.array(asked)).tolist() == [rows.get(tuple(tokens), -1) for tokens in asked]


@given(items=catalogues)
def test_mask_agrees_with_a_search_at_every_prefix(items):
    trie = Trie.build(items, VOCAB)
    prefixes = prefixes_of(items)
    nodes = np.array([node_of(trie, prefix) for prefix in prefixes])
    assert len(set(nodes.tolist())) == len(prefixes)
    for row, prefix in zip(trie.mask(nodes), prefixes, strict=True):
        assert set(np.flatnonzero(row).tolist()) == allowed_by_hand(items, prefix, set())


@given(items=catalogues, data=st.data())
def test_mask_with_exclusions_agrees_with_a_search(items, data):
    trie = Trie.build(items, VOCAB)
    rows = st.lists(st.integers(0, len(items) - 1), max_size=len(items) + 3)
    excluded = data.draw(st.lists(rows, min_size=1, max_size=4))
    exclusions = Exclusions(trie, [np.array(x, dtype=np.int32) for x in excluded])
    prefixes = prefixes_of(items)
    nodes = np.array([node_of(trie, prefix) for prefix in prefixes for _ in excluded])
    requests = np.array([r for _ in prefixes for r in range(len(excluded))])
    masks = trie.mask(nodes, exclusions, requests)
    for index, mask in enumerate(masks):
        prefix, request = prefixes[index // len(excluded)], index % len(excluded)
        assert set(np.flatnonzero(mask).tolist()) == allowed_by_hand(items, prefix, set(excluded[request]))


@given(items=catalogues, data=st.data())
def test_a_masked_walk_never_leaves_the_catalogue_nor_reaches_an_excluded_item(items, data):
    trie = Trie.build(items, VOCAB)
    kept = data.draw(st.integers(0, len(items) - 1))
    excluded = [i for i in data.draw(st.lists(st.integers(0, len(items) - 1), max_size=40)) if i != kept]
    exclusions = Exclusions(trie, [np.array(excluded, dtype=np.int32)])
    node, tokens, choose = np.array([0]), [], data.draw(st.randoms(use_true_random=False))
    for _ in range(trie.levels):
        allowed = np.flatnonzero(trie.mask(node, exclusions, np.array([0]))[0])
        assert len(allowed)
        tokens.append(choose.choice(allowed.tolist()))
        node = trie.step(node, np.array([tokens[-1]]))
    item = int(trie.lookup(np.array(tokens)))
    assert item >= 0 and item not in excluded


@given(items=catalogues)
def test_save_and_load_round_trip(items, tmp_path_factory):
    trie = Trie.build(items, VOCAB)
    path = tmp_path_factory.mktemp("trie") / "trie.npz"
    trie.save(path)
    again = Trie.load(path)
    assert (again.levels, again.vocab_size) == (trie.levels, trie.vocab_size)
    assert again.lookup(items).tolist() == list(range(len(items)))
    for name in Trie.__dataclass_fields__:
        assert np.array_equal(getattr(again, name), getattr(trie, name))


@given(items=catalogues, data=st.data())
def test_order_of_the_items_changes_nothing_but_their_rows(items, data):
    order = np.array(data.draw(st.permutations(range(len(items)))))
    trie, shuffled = Trie.build(items, VOCAB), Trie.build(items[order], VOCAB)
    assert np.array_equal(trie.token, shuffled.token)
    assert np.array_equal(trie.leaf_item, order[shuffled.leaf_item])


THREE = np.array([[1, 2], [1, 4], [3, 2]])


def test_layout_by_hand():
    trie = Trie.build(THREE, VOCAB)
    assert trie.token.tolist() == [-1, 1, 3, 2, 4, 2]
    assert trie.depth_start.tolist() == [0, 1, 3, 6]
    assert trie.first_child.tolist() == [1, 3, 5, 6]
    assert [trie.child_count(node) for node in range(3)] == [2, 2, 1]
    assert (trie.token_low.tolist(), trie.width.tolist()) == ([1, 2], [3, 3])
    assert trie.most_children.tolist() == [2, 2]
    assert trie.bits_start.tolist() == [0, 1]
    assert trie.bits.tolist() == [0b101, 0b101, 0b001]


def test_dead_stays_dead_and_tokens_do_not_leak_between_parents():
    trie = Trie.build(THREE, VOCAB)
    # Node 2 (prefix 3) has no child 4 though node 1 has; token -1 and VOCAB lie in the key range of a
    # neighbour.
    assert (
        trie.step(np.array([2, DEAD, 1, 2, 0, 1]), np.array([4, 1, -1, VOCAB - 1, VOCAB - 1, 0])).tolist()
        == [DEAD] * 6
    )
    assert trie.walk(np.array([[1, 2], [5, 2], [3, 4]])).tolist() == [
        [0, 1, 3],
        [0, DEAD, DEAD],
        [0, 2, DEAD],
    ]


def test_a_negative_token_is_no_edge_of_the_node_before():
    trie = Trie.build(np.array([[1, VOCAB - 1], [2, 0]]), VOCAB)
    # parent * VOCAB + token: (2, -1) has the key of (1, VOCAB - 1).
    assert trie.step(np.array([2, 1]), np.array([-1, VOCAB - 1])).tolist() == [DEAD, 3]


def test_step_takes_only_tokens_of_the_vocabulary():
    trie = Trie.build(THREE, VOCAB)
    # parent * VOCAB + token: (1, 8) has the key of (2, 2), an edge of another node.
    assert trie.step(np.array([1]), np.array([VOCAB + 2])).tolist() == [DEAD]


def test_nothing_is_allowed_at_a_leaf_or_off_the_trie():
    trie = Trie.build(THREE, VOCAB)
    masks = trie.mask(np.array([3, DEAD, 2]))
    assert masks.sum(axis=1).tolist() == [0, 0, 1]
    assert masks[2].tolist() == [False, False, True, False, False, False]


def test_exclusions_belong_to_their_request():
    trie = Trie.build(THREE, VOCAB)
    exclusions = Exclusions(trie, [np.array([0, 1, 1]), np.array([], dtype=np.int32), np.array([2])])
    masks = trie.mask(np.array([0, 0, 0, 1]), exclusions, np.array([0, 1, 2, 2]))
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[3], [1, 3], [1], [2, 4]]


def test_everything_excluded_allows_nothing():
    trie = Trie.build(THREE, VOCAB)
    exclusions = Exclusions(trie, [np.arange(3)])
    assert not trie.mask(np.array([0, 1]), exclusions, np.array([0, 0])).any()


def test_the_last_leaf_of_one_request_is_not_the_first_of_the_next():
    trie = Trie.build(THREE, VOCAB)
    exclusions = Exclusions(trie, [np.array([2]), np.array([0])])
    assert exclusions.covers(trie, np.array([2, 3, 2, 3]), np.array([0, 0, 1, 1])).tolist() == [
        True,
        False,
        False,
        True,
    ]


@given(items=catalogues, data=st.data())
def test_two_items_with_the_same_tokens_are_refused(items, data):
    assume(len(items) > 1)
    first, second = sorted(
        data.draw(st.lists(st.integers(0, len(items) - 1), min_size=2, max_size=2, unique=True))
    )
    twins = items.copy()
    twins[second] = twins[first]
    with pytest.raises(DataError, match=f"rows {first} and {second} have the same semantic ID"):
        Trie.build(twins, VOCAB)


def test_no_item_is_refused():
    with pytest.raises(DataError, match="holds no item"):
        Trie.build(np.empty((0, 3), dtype=np.int64), VOCAB)


def test_items_that_are_left_are_counted_once_and_without_the_retired():
    trie = Trie.build(np.asarray([[3, 5], [3, 6], [4, 5], [4, 6]]), vocab_size=7, retired=np.asarray([3]))
    left = [
        trie.items_without(np.asarray(excluded, dtype=np.int32)) for excluded in ([], [1], [1, 1, 0], [3])
    ]
    assert left == [3, 2, 1, 3]
