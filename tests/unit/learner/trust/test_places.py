"""The place of a logged item, and the draw of what others took."""

import numpy as np
import pytest

from sluice.learner.trust.places import OthersItems, place_of, seed_of

NAN = np.nan


@pytest.mark.parametrize(
    ("scores", "place"),
    [
        ([2.0, 1.0, 0.0, 3.0, -1.0], 0.75),
        ([9.0, 1.0, 0.0, 3.0, -1.0], 1.0),
        ([-9.0, 1.0, 0.0, 3.0, -1.0], 0.0),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.5),  # a ranker that scores everything alike knows nothing
        ([1.0, 1.0, 0.0, 3.0, 3.0], 0.375),
        ([1.0, 1.0, 0.0, NAN, NAN], 0.75),  # padding is nobody
        ([1.0, NAN, NAN, NAN, NAN], NAN),
    ],
)
def test_places_by_hand(scores, place):
    np.testing.assert_array_equal(place_of(np.array([scores])), [place])


def test_rows_have_places_of_their_own():
    np.testing.assert_array_equal(place_of(np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]])), [0.5, 1.0])


def test_others_are_drawn_by_their_frequency_without_the_own_and_what_nobody_took():
    counts = np.array([10, 0, 30, 5, 60, 0, 100])
    drawn = OthersItems(counts).draw(np.array([6, 0, 6, 1]), 100_000, (1, 2))
    assert drawn.dtype == np.int32
    shares = np.bincount(drawn, minlength=7) / len(drawn)
    expected = np.array([0, 0, 30, 5, 60, 0, 0]) / 95
    deviation = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(shares - expected) <= 4 * deviation).all()


@pytest.mark.parametrize("own", [[], [0], [3], [0, 1], [2, 3], [0, 1, 2], [1, 3], [0, 3], [1, 2, 3]])
def test_no_own_item_is_ever_drawn_and_every_other_is(own):
    drawn = OthersItems(np.array([1, 2, 1, 3])).draw(np.array(own, dtype=np.int32), 400, (0,))
    assert set(drawn.tolist()) == set(range(4)) - set(own)


def test_without_others_there_is_nothing_to_compare_with():
    others = OthersItems(np.array([4, 0, 2]))
    assert others.draw(np.array([0, 2]), 3, (0,)).tolist() == [-1, -1, -1]


def test_a_draw_is_repeatable_and_of_its_own_ranker_user_and_place():
    others, own = OthersItems(np.full(1000, 3)), np.array([5])
    draws = {
        tuple(others.draw(own, 8, seed_of(*key)).tolist())
        for key in [("a", 1, 2), ("a", 2, 1), ("a", 1, 3), ("b", 1, 2), ("a", 1, 2)]
    }
    assert len(draws) == 4
