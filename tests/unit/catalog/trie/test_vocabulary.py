import numpy as np
import pytest

from sluice.catalog.errors import DataError, PolicyError, RunError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary

LAYOUT = TokenLayout.fresh((3, 4))  # tokens: level 0 = 3..5, level 1 = 6..9
CODES = np.array([[0, 1], [0, 2], [2, 3]])


@pytest.fixture
def start() -> Vocabulary:
    return Vocabulary.of(CODES, LAYOUT)


def generated(vocabulary: Vocabulary) -> list[int]:
    """The item rows that a walk over everything the masks allow can reach."""
    trie, reached, front = vocabulary.trie, [], [(0, ())]
    while front:
        node, tokens = front.pop()
        if len(tokens) == trie.levels:
            reached.append(int(trie.lookup(np.array(tokens))))
            continue
        for token in np.flatnonzero(trie.mask(np.array([node]))[0]):
            front.append((int(trie.step(np.array([node]), np.array([token]))[0]), (*tokens, int(token))))
    return sorted(reached)


def test_new_items_can_be_generated_and_retired_ones_can_not(start):
    newer = start.changed(new_codes=np.array([[2, 0], [1, 1]]), retire=np.array([1]))
    assert (start.version, newer.version) == (0, 1)
    assert generated(start) == [0, 1, 2]
    assert generated(newer) == [0, 2, 3, 4]
    assert newer.item_tokens.tolist() == [[3, 7], [3, 8], [5, 9], [5, 6], [4, 7]]
    assert newer.retired.tolist() == [1]


def test_what_was_retired_stays_retired(start):
    later = start.changed(retire=np.array([1])).changed(retire=np.array([2]))
    assert later.version == 2
    assert generated(later) == [0]
    assert later.retired.tolist() == [1, 2]


def test_a_retired_item_frees_no_node_of_its_neighbours(start):
    newer = start.changed(retire=np.array([2]))
    assert newer.trie.lookup(newer.item_tokens).tolist() == [0, 1, -1]
    assert newer.trie.item_leaf.tolist() == [0, 1, -1]
    assert np.flatnonzero(newer.trie.mask(np.array([0]))[0]).tolist() == [3]


def test_a_change_that_does_not_fit_says_why(start):
    with pytest.raises(
        PolicyError, match=r"item row 1 has code 4 at level 1, but the policy has codes 0\.\.3"
    ):
        start.changed(new_codes=np.array([[0, 0], [0, 4]]))
    with pytest.raises(DataError, match="rows 0 and 3 have the same semantic ID"):
        start.changed(new_codes=np.array([[0, 1]]))
    with pytest.raises(DataError, match="rows 1 and 3 have the same semantic ID"):
        start.changed(retire=np.array([1])).changed(new_codes=np.array([[0, 2]]))
    with pytest.raises(DataError, match=r"item row 3 can't be retired: the catalogue has rows 0\.\.2"):
        start.changed(retire=np.array([0, 3]))
    with pytest.raises(DataError, match="item row -1 can't be retired"):
        start.changed(retire=np.array([-1]))
    with pytest.raises(DataError, match="item row 1 can't be retired: it was retired before version 2"):
        start.changed(retire=np.array([1])).changed(retire=np.array([1]))
    with pytest.raises(DataError, match="holds no item"):
        start.changed(retire=np.arange(3))


def test_only_a_later_version_with_the_same_rows_takes_a_catalogues_place(start):
    newer = start.changed(new_codes=np.array([[1, 1]]))
    assert newer.after(start).trie is newer.trie
    with pytest.raises(DataError, match="version 0 can't replace version 1"):
        start.after(newer)
    with pytest.raises(DataError, match="version 1 can't replace version 1"):
        newer.after(newer)
    with pytest.raises(DataError, match="version 5 gives item rows other tokens than version 0"):
        Vocabulary.of(CODES[::-1], LAYOUT, version=5).after(start)
    with pytest.raises(DataError, match="version 5 gives item rows other tokens than version 1"):
        Vocabulary.of(CODES, LAYOUT, version=5).after(newer)
    with pytest.raises(DataError, match="version 5 gives item rows other tokens"):
        Vocabulary.of(CODES, TokenLayout.fresh((3, 5)), version=5).after(start)


def test_the_last_few_tries_stay_known(start):
    current = start
    for code in ((0, 0), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)):
        current = current.changed(new_codes=np.array([code])).after(current)
    assert [current.trie_of(version).items for version in (2, 3, 4, 5, 6)] == [5, 6, 7, 8, 9]
    with pytest.raises(RunError, match=r"catalogue version 1, known here are \[6, 5, 4, 3, 2\]"):
        current.trie_of(1)


def test_a_version_that_was_missed_comes_with_the_next(start):
    first = start.changed(retire=np.array([0])).after(start)
    second = first.changed(retire=np.array([1])).after(first)
    missed = second.after(start)
    assert [missed.trie_of(version).items for version in (0, 1, 2)] == [3, 2, 1]


def test_sequences_are_looked_up_in_their_own_version(start):
    newer = start.changed(new_codes=np.array([[1, 1]]), retire=np.array([0])).after(start)
    tokens = np.array([[[3, 7], [4, 7]], [[3, 7], [4, 7]], [[5, 9], [3, 8]]])
    assert newer.lookup(tokens, np.array([0, 1, 1])).tolist() == [[0, -1], [-1, 3], [2, 1]]
