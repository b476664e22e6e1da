"""How many groups a run may lose."""

import pytest

from sluice.actors.queue.budget import LossBudget
from sluice.actors.settings import QueueSettings


def budget(window=100, invalid=0.5, stale=0.9):
    return LossBudget(QueueSettings(share_window=window, max_invalid_share=invalid, max_stale_share=stale))


def seen(made, *counts):
    for trained, stale, invalid in counts:
        made.see({"trained": trained, "stale": stale, "invalid": invalid, "issued": 10**6})
    return made.over("rollout-0: no scores today")


@pytest.mark.parametrize(
    ("counts", "over"),
    [
        ([], None),
        ([(0, 0, 0)], None),
        ([(0, 0, 0), (0, 0, 99)], None),  # no window yet
        ([(0, 0, 0), (0, 0, 100)], "100 of the last 100 groups were invalid"),
        ([(0, 0, 0), (50, 0, 50)], None),
        ([(0, 0, 0), (50, 0, 51)], "51 of the last 101 groups were invalid"),
        ([(0, 0, 0), (10, 90, 0)], None),
        ([(0, 0, 0), (9, 91, 0)], "91 of the last 100 groups were stale"),
        ([(7000, 0, 0), (7000, 0, 100)], "100 of the last 100"),  # what was before does not count
        ([(0, 0, 0), (1000, 0, 0), (1010, 0, 89)], None),  # the window is the least that is full
        ([(0, 0, 0), (1000, 0, 0), (1010, 0, 90)], "90 of the last 100 groups were invalid"),
        ([(0, 0, 0), (1000, 0, 0), (1010, 0, 90), (1020, 0, 180)], "90 of the last 100 groups were invalid"),
        ([(0, 0, 0), (10, 0, 40), (10, 0, 20), (10, 0, 99)], None),  # went back: the window begins anew
    ],
)
def test_a_share_of_the_last_groups_may_be_lost(counts, over):
    told = seen(budget(), *counts)
    assert told is None if over is None else told.startswith(over)


def test_the_message_has_bound_last_error_and_remedy():
    assert seen(budget(), (0, 0, 0), (0, 0, 100)) == (
        "100 of the last 100 groups were invalid, more than the share queue.max_invalid_share = 0.5 allows. "
        "Last error of the rollout side: rollout-0: no scores today. Mend the ranker or the data, try them "
        "with `sluice config check --deep`, or raise queue.max_invalid_share"
    )


def test_a_share_of_one_never_ends_a_run():
    assert seen(budget(invalid=1, stale=1), (0, 0, 0), (0, 0, 1000), (0, 1000, 1000)) is None


def test_the_window_stays_short_however_often_one_looks():
    made = budget(window=10)
    for number in range(1000):
        made.see({"trained": number, "stale": 0, "invalid": 0})
    assert len(made._seen) <= 12
