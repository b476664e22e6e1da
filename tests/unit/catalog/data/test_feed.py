import numpy as np
import pytest

from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import DataError, RunError

USERS = np.asarray([10, 11, 12, 13, 14], dtype=np.int32)
POSITIONS = np.asarray([1, 2, 3, 4, 5], dtype=np.int32)


def feed(seed: int = 7) -> PromptFeed:
    return PromptFeed(USERS, POSITIONS, seed=seed)


def test_an_epoch_is_the_permutation_of_seed_and_epoch():
    drawn = [feed_.draw() for feed_ in [feed()] for _ in range(10)]
    for epoch, part in enumerate((drawn[:5], drawn[5:])):
        order = np.random.default_rng([7, epoch]).permutation(5)
        assert part == [(int(USERS[row]), int(POSITIONS[row])) for row in order]
    assert drawn[:5] != drawn[5:]


def test_every_example_comes_once_per_epoch():
    one = feed()
    assert sorted(one.draw() for _ in range(5)) == list(zip(USERS.tolist(), POSITIONS.tolist(), strict=True))
    assert (one.epoch, one.cursor) == (0, 5)
    one.draw()
    assert (one.epoch, one.cursor) == (1, 1)


@pytest.mark.parametrize("before", [0, 3, 5, 8])
def test_a_restored_feed_goes_on_with_the_very_next_example(before):
    one = feed()
    for _ in range(before):
        one.draw()
    other = feed()
    other.restore(one.snapshot())
    assert [other.draw() for _ in range(7)] == [one.draw() for _ in range(7)]


def test_rewinding_starts_over():
    one = feed()
    first = [one.draw() for _ in range(7)]
    one.rewind()
    assert [one.draw() for _ in range(7)] == first


def test_a_snapshot_of_another_order_is_refused():
    with pytest.raises(RunError, match="seed 8, this run has 7"):
        feed().restore(feed(seed=8).snapshot())
    with pytest.raises(RunError, match="examples 5, this run has 4"):
        PromptFeed(USERS[:4], POSITIONS[:4], seed=7).restore(feed().snapshot())


def test_a_feed_needs_examples():
    with pytest.raises(DataError, match="0 users"):
        PromptFeed(USERS[:0], POSITIONS[:0], seed=7)
    with pytest.raises(DataError, match="5 users and 4 positions"):
        PromptFeed(USERS, POSITIONS[:4], seed=7)
