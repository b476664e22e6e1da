"""What a ranker may learn from, and what is held out of it."""

from dataclasses import replace

import numpy as np
import pytest

from sluice.learner.ranker.known_logs import KnownLogs
from tests.tiny_data import ITEMS, LENGTH, USERS, tiny_dataset


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return KnownLogs.until(tiny_dataset(tmp_path_factory.mktemp("known")), "pretrain")


def test_logs_are_the_leading_interactions(logs):
    assert logs.lengths.tolist() == [LENGTH - 2] * USERS
    users, items = logs.interactions()
    assert users.tolist() == np.repeat(np.arange(USERS), LENGTH - 2).tolist()
    assert sorted(items[:7].tolist()) == list(range(items[:7].min(), items[:7].min() + 7))
    assert logs.item_counts().sum() == USERS * (LENGTH - 2)
    assert logs.item_shares().sum() == pytest.approx(1)
    assert len(logs.item_counts()) == ITEMS


@pytest.mark.parametrize(("share", "out"), [(0.01, 1), (0.3, 2), (0.5, 3)])
def test_the_end_of_each_user_is_held_out(logs, share, out):
    rest, held_out = logs.hold_out(share)
    assert rest.lengths.tolist() == [7 - out] * USERS
    assert held_out.users.tolist() == np.repeat(np.arange(USERS), out).tolist()
    assert held_out.positions[:out].tolist() == list(range(7 - out, 7))
    targets = [logs.dataset.target(u, p) for u, p in zip(held_out.users, held_out.positions, strict=True)]
    assert sorted([*rest.interactions()[1].tolist(), *targets]) == sorted(logs.interactions()[1].tolist())


def test_short_users_keep_what_they_have(logs):
    few = replace(logs, lengths=np.array([2, 3, 0] + [1] * (USERS - 3)))
    rest, held_out = few.hold_out(0.5)
    assert rest.lengths[:3].tolist() == [2, 2, 0]
    assert list(zip(held_out.users, held_out.positions, strict=True)) == [(1, 2)]
