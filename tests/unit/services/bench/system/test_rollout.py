"""What `sluice bench rollout` makes of the arrivals of groups."""

import numpy as np
import pytest

from sluice.catalog.errors import RunError
from sluice.services.bench.support.rollout_timing import Arrivals, Round, share_of_same, summarise_rounds
from sluice.services.bench.system import rollout


def test_groups_are_timed_from_one_arrival_to_another():
    arrivals = Arrivals()
    for groups, at_s in ((8, 1.0), (0, 1.5), (4, 2.0), (8, 4.0), (10, 9.0)):
        arrivals.note(groups, at_s)
    assert arrivals.groups == [8, 12, 20, 30]
    # number 9 came with the 12th after 2 s, number 20 after 4 s; then number 21 with the 30th after 9 s
    assert arrivals.seconds_per_group(9, 20) == pytest.approx(2 / 8)
    assert arrivals.seconds_per_group(9, 21) == pytest.approx(7 / 18)
    with pytest.raises(RunError, match=r"\[30\] groups arrived, too few to time those from 9 to 31"):
        arrivals.seconds_per_group(9, 31)
    with pytest.raises(RunError, match="too few"):
        arrivals.seconds_per_group(21, 30)
    with pytest.raises(RunError, match=r"\[0\] groups arrived"):
        Arrivals().seconds_per_group(1, 2)


def test_the_ratio_is_the_median_of_the_rounds():
    rounds = [
        Round(service_s=0.020, engine_s=0.015, bare_s=0.018, bare_add_s=0.001),
        Round(service_s=0.050, engine_s=0.030, bare_s=0.050, bare_add_s=0.002),
        Round(service_s=0.025, engine_s=0.020, bare_s=0.010, bare_add_s=0.003),
    ]
    found = summarise_rounds(rounds)
    assert found["ratios"] == pytest.approx([0.9, 1.0, 0.4])
    assert found["ratio"] == pytest.approx(0.9)
    assert found["groups_per_s"] == pytest.approx({"service": 40, "bare": 1 / 0.018})
    assert found["ms_per_group"] == pytest.approx(
        {"service": 25, "service_engine": 20, "bare": 18, "bare_add": 2}
    )


def test_candidates_are_compared_as_whole_items():
    ours = {1: np.asarray([[3, 5], [4, 6]]), 2: np.asarray([[3, 5], [3, 5]]), 3: np.asarray([[9, 9], [9, 9]])}
    theirs = {1: np.asarray([[3, 5], [4, 7]]), 2: np.asarray([[3, 5], [3, 5]])}
    assert share_of_same(ours, theirs) == pytest.approx(0.75)
    with pytest.raises(RunError, match="no prompt in common"):
        share_of_same(ours, {4: theirs[1]})


def test_the_stub_ranker_keeps_the_contract():
    scores = rollout.StubRanker(None).score([np.asarray([1])], np.asarray([[7, 0, -1]], dtype=np.int32))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[7, 0, np.nan]])
