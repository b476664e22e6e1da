"""The trie's queries over wide levels, where some levels have bits and others do not, in numpy and torch."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.catalog.errors import DataError
from sluice.catalog.trie import build as trie_build
from sluice.catalog.trie.arrays import DEAD
from sluice.catalog.trie.build import build_arrays
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.trie import Trie

LOW, WIDTH = (3, 73, 143), 70  # each level has 70 tokens of its own
VOCAB = 213


@st.composite
def catalogues(draw) -> np.ndarray:
    """Items that crowd below a few prefixes, so that some nodes have dozens of children and most have one."""
    seed, crowd, rest = draw(st.integers(0, 2**20)), draw(st.integers(0, 120)), draw(st.integers(1, 60))
    random = np.random.default_rng(seed)
    dense = np.stack([random.integers(0, n, crowd) for n in draw(st.permutations((1, 3, WIDTH)))], axis=1)
    codes = np.unique(np.concatenate([dense, random.integers(0, WIDTH, (rest, 3))]), axis=0)
    return random.permutation(codes + LOW)


def follow(items: np.ndarray, prefix: tuple[int, ...], excluded=frozenset()) -> list[int]:
    depth = len(prefix)
    rows = (
        row for at, row in enumerate(items.tolist()) if at not in excluded and tuple(row[:depth]) == prefix
    )
    return sorted({row[depth] for row in rows}) if depth < items.shape[1] else []


def some_prefixes(items: np.ndarray, data) -> list[tuple[int, ...]]:
    rows = data.draw(st.lists(st.integers(0, len(items) - 1), min_size=1, max_size=12))
    return [tuple(items[row, : data.draw(st.integers(0, 2))].tolist()) for row in rows]


def nodes_of(trie: Trie, prefixes) -> np.ndarray:
    return np.array([trie.walk(np.array(prefix, dtype=np.int64))[-1] for prefix in prefixes])


@settings(deadline=None)
@given(items=catalogues(), data=st.data())
def test_masks_and_penalties_agree_with_a_search(items, data):
    trie, prefixes = Trie.build(items, VOCAB), some_prefixes(items, data)
    sets = data.draw(st.lists(st.lists(st.integers(0, len(items) - 1), max_size=20), min_size=1, max_size=3))
    owner = np.array([at % len(sets) for at in range(len(prefixes))])
    exclusions = Exclusions(trie, [np.array(rows, dtype=np.int32) for rows in sets])
    nodes = nodes_of(trie, prefixes)
    expected = [follow(items, prefix, set(sets[at])) for prefix, at in zip(prefixes, owner, strict=True)]
    assert [np.flatnonzero(row).tolist() for row in trie.mask(nodes, exclusions, owner)] == expected
    assert [np.flatnonzero(row).tolist() for row in trie.mask(nodes)] == [
        follow(items, one) for one in prefixes
    ]
    # Logits of more rows and more tokens than the trie knows; rows that are not named stay as they are.
    rows = np.arange(len(nodes)) * 2 + 1
    before = torch.randn(2 * len(nodes) + 1, VOCAB + 5)
    after = trie.host.restrict(before.clone(), nodes, rows, exclusions, owner)
    kept = torch.isfinite(after)
    assert [torch.nonzero(row).flatten().tolist() for row in kept[rows]] == expected
    assert kept[::2].all() and torch.equal(after[kept], before[kept])
    assert torch.equal(trie.host.restrict(before[rows].clone(), nodes, None, exclusions, owner), after[rows])


@settings(deadline=None)
@given(items=catalogues(), data=st.data())
def test_numpy_and_torch_step_alike_and_as_a_search_does(items, data):
    trie, prefixes = Trie.build(items, VOCAB), some_prefixes(items, data)
    prefixes += [tuple(row) for row in items[:2].tolist()]  # nothing follows an item
    near = [follow(items, prefix)[:1] for prefix in prefixes]
    tokens = [
        [*data.draw(st.lists(st.integers(-2, VOCAB + 1), min_size=3, max_size=3)), *(one or [0])]
        for one in near
    ]
    nodes = np.repeat(nodes_of(trie, prefixes)[:, None], 4, axis=1)
    found = trie.step(nodes, np.array(tokens))
    assert found.dtype == np.int32
    assert torch.equal(trie.host.step(torch.from_numpy(nodes), torch.tensor(tokens)), torch.from_numpy(found))
    prefix_of = {int(node): prefix for prefix, node in zip(prefixes, nodes[:, 0], strict=True)}
    for row, prefix in enumerate(prefixes):
        for column, token in enumerate(tokens[row]):
            child = found[row, column]
            assert (child != DEAD) == (token in follow(items, prefix))
            if child != DEAD:
                assert trie.token[child] == token
                assert child not in prefix_of or prefix_of[int(child)] == (*prefix, token)


def test_a_level_has_bits_only_where_they_take_no_more_bytes_than_its_tokens():
    # 9 bytes of bits per node, 4 per token: three children are enough for bits, two are not.
    three = np.array([[3, 73 + at] for at in (0, 5, 69)])
    two = np.array([[3, 73 + at] for at in (0, 69)])
    assert (Trie.build(three, VOCAB).bits_start >= 0).tolist() == [True, True]
    assert (Trie.build(two, VOCAB).bits_start >= 0).tolist() == [True, False]
    # Four bytes of bits for each of two nodes, four per token of two children.
    assert (Trie.build(np.array([[3, 73], [4, 73 + 25]]), VOCAB).bits_start >= 0).tolist() == [True, True]
    assert Trie.build(three, VOCAB).bits.tolist() == [1, 0b100001, 0, 0, 0, 0, 0, 0, 0, 0b100000]


def test_a_level_of_whole_bytes_has_room_for_writes_that_are_not_meant():
    # Eight tokens; request 1 excludes fewer items than request 0, so one of its writes goes to a column of no
    # token.
    trie = Trie.build(np.array([[first, 73 + second] for first in (3, 4) for second in range(8)]), VOCAB)
    exclusions = Exclusions(trie, [np.array([0, 1]), np.array([15])])
    masks = trie.mask(nodes_of(trie, [(3,), (4,)]), exclusions, np.array([0, 1]))
    assert [np.flatnonzero(row).tolist() for row in masks] == [list(range(75, 81)), list(range(73, 80))]


@pytest.mark.parametrize("levels", [3, 8])
def test_items_of_any_number_of_bits_are_sorted_alike(levels):
    """Eight levels of ten bits do not fit into one integer."""
    random = np.random.default_rng(0)
    items = np.unique(random.integers(0, 1024, (200, levels)), axis=0)
    items[:, :-1] -= items[:, :-1] % 200  # few prefixes, far apart
    items = random.permutation(np.unique(items, axis=0))
    arrays = build_arrays(items, np.empty(0, dtype=np.int64))
    order = sorted(range(len(items)), key=items.tolist().__getitem__)
    assert arrays["leaf_item"].tolist() == order
    trie = Trie.build(items, 1024)
    assert trie.lookup(items).tolist() == list(range(len(items)))
    assert trie.nodes == len({tuple(row[:depth]) for row in items.tolist() for depth in range(levels + 1)})


@pytest.mark.parametrize("cores", [2, 7, 300])
@pytest.mark.parametrize("levels", [2, 8])
def test_a_trie_built_in_parts_is_the_one_built_at_once(monkeypatch, levels, cores):
    random = np.random.default_rng(cores)
    items = random.permutation(np.unique(random.integers(3, 900, (250, levels)), axis=0))
    retired = random.permutation(len(items))[:90]
    whole = build_arrays(items, retired)
    monkeypatch.setattr(trie_build, "_PART_ROWS", 1)
    monkeypatch.setattr(trie_build.os, "sched_getaffinity", lambda process: range(cores))
    assert len(trie_build._parts(len(items))) == min(cores, len(items))
    built = build_arrays(items, retired)
    for name, array in whole.items():
        assert (built[name].dtype, built[name].tolist()) == (array.dtype, array.tolist()), name


def test_a_saved_trie_is_mapped_and_a_pickled_one_carries_its_arrays_alone(tmp_path):
    items = np.array([[1, 2], [1, 4], [3, 2]])
    trie = Trie.build(items, 6, version=7, retired=np.array([1]))
    trie.save(tmp_path / "trie")
    assert trie.host is trie.host
    for again in (Trie.load(tmp_path / "trie"), pickle.loads(pickle.dumps(trie))):
        assert again.version == 7
        assert again.nbytes == trie.nbytes
        assert again.lookup(items).tolist() == [0, -1, 2]
        assert again.mask(np.array([0, 1])).tolist() == trie.mask(np.array([0, 1])).tolist()
    mapped = Trie.load(tmp_path / "trie")
    assert all(isinstance(value, np.memmap) for value in (mapped.token, mapped.first_child, mapped.bits))
    assert "host" not in trie.__getstate__()


def test_a_trie_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no saved trie \(numbers.json is missing\)"):
        Trie.load(tmp_path)


def test_parts_of_exclusions_join_to_the_whole():
    items = np.array([[1, 2], [1, 4], [3, 2], [3, 5]])
    trie = Trie.build(items, 6)
    sets = [np.array([0]), np.array([], dtype=np.int32), np.array([2, 3]), np.arange(4)]
    whole = Exclusions(trie, sets)
    parts = whole.split()
    assert [part.requests for part in parts] == [1, 1, 1, 1]
    assert [len(part) for part in parts] == [
        1,
        0,
        3,
        7,
    ]  # leaves, the node above two of them, and at last the root
    back = Exclusions.joined([parts[2], *parts])
    nodes, owner = np.repeat(np.arange(3), 5), np.tile(np.arange(5), 3)
    masks = trie.mask(nodes, back, owner)
    assert masks.tolist() == trie.mask(nodes, whole, np.array([2, 0, 1, 2, 3] * 3)).tolist()
    assert [np.flatnonzero(mask).tolist() for mask in masks[:5]] == [[1], [1, 3], [1, 3], [1], []]
    covered = Exclusions(trie, [np.array([0])]).covers(trie, np.array([3, 4, 6]), np.zeros(3, dtype=int))
    assert covered.tolist() == [True, False, False]
    twice = Exclusions.joined([whole, whole])
    assert twice.requests == 8
    again = trie.mask(np.repeat(np.arange(3), 4), twice, np.tile(np.arange(4, 8), 3))
    assert again.tolist() == trie.mask(np.repeat(np.arange(3), 4), whole, np.tile(np.arange(4), 3)).tolist()
    assert len(Exclusions.joined([])) == 0


def test_retired_items_are_excluded_already():
    trie = Trie.build(np.array([[1, 2], [1, 4], [3, 2]]), 6, retired=np.array([2]))
    exclusions = Exclusions(trie, [np.array([2]), np.array([0, 2])])
    assert len(exclusions) == 1
    masks = trie.mask(np.array([0, 1, 0, 1]), exclusions, np.array([0, 0, 1, 1]))
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[1], [2, 4], [1], [4]]
