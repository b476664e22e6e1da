"""The stratified analysis by hand: cells, changes, and the gate at the start."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.evaluation.stratified import (
    gate_at_start,
    hit_rate,
    policy_bands,
    rank_gain,
    ranker_bands,
    stratify_users,
)
from sluice.learner.gate.settings import GateSettings


def results(ranks, top_items=None) -> UserResults:
    ranks = np.array(ranks)
    items = (
        np.zeros((len(ranks), 10), dtype=np.int32)
        if top_items is None
        else np.array(top_items, dtype=np.int32)
    )
    return UserResults(
        users=np.arange(len(ranks)), ranks=ranks, top_items=items, invalid=np.zeros(len(ranks))
    )


JUDGED = {
    "start": results([1, 10, 11, 0, 0, 0]),
    "control": results([1, 5, 11, 0, 0, 7]),
    "best": results([2, 20, 5, 0, 3, 14]),
}
RANKER = results([3, 60, 11, 50, 51, 50])


def test_cells_by_hand():
    cells = stratify_users(JUDGED, RANKER, 20, np.array([True, False, True, True, False, False]))
    names = ("policy_rank", "ranker_rank", "users", "admitted", "start_hr@10", "control_hr@10", "best_hr@10")
    assert [tuple(cell[name] for name in names) for cell in cells] == [
        ("1-10", "1-10", 1, 1.0, 1.0, 1.0, 1.0),
        ("1-10", ">50", 1, 0.0, 1.0, 1.0, 0.0),
        ("11-20", "11-50", 1, 1.0, 0.0, 0.0, 1.0),
        ("not in 20", "11-50", 2, 0.5, 0.0, 0.5, 0.0),
        ("not in 20", ">50", 1, 0.0, 0.0, 0.0, 1.0),
    ]
    # log2 of 1/1, 10/5, 11/11, (21/21 and 21/7), 21/21
    assert [cell["control_rank_gain"] for cell in cells] == pytest.approx([0, 1, 0, np.log2(3) / 2, 0])
    # log2 of 1/2, 10/20, 11/5, (21/21 and 21/14), 21/3
    expected = [-1, -1, np.log2(11 / 5), np.log2(1.5) / 2, np.log2(7)]
    assert [cell["best_rank_gain"] for cell in cells] == pytest.approx(expected)


def test_without_a_gate_nothing_is_said_of_it():
    assert all("admitted" not in cell for cell in stratify_users(JUDGED, RANKER, 20))


def test_bands_meet_without_overlap():
    ranks = np.array([1, 10, 11, 20, 0])
    assert {label: inside.tolist() for label, inside in policy_bands(ranks, 20).items()} == {
        "1-10": [True, True, False, False, False],
        "11-20": [False, False, True, True, False],
        "not in 20": [False, False, False, False, True],
    }
    assert list(policy_bands(ranks, 10)) == ["1-10", "not in 10"]
    found = ranker_bands(np.array([1, 10, 11, 50, 51]))
    assert {label: inside.tolist() for label, inside in found.items()} == {
        "1-10": [True, True, False, False, False],
        "11-50": [False, False, True, True, False],
        ">50": [False, False, False, False, True],
    }


def test_rank_gain_and_hit_rate_by_hand():
    assert rank_gain(np.array([8, 0]), np.array([2, 8]), beam_width=15) == pytest.approx((2 + 1) / 2)
    assert rank_gain(np.array([2]), np.array([0]), beam_width=15) == pytest.approx(-3)
    assert hit_rate(np.array([0, 10, 11, 1])) == 0.5


class Data:
    """Five users; user u's history is item u and the target item 20 + u."""

    settings = SimpleNamespace(max_history=5)

    def examples(self, split):
        assert split == "test"
        return SimpleNamespace(users=np.arange(5), positions=np.ones(5, dtype=int))

    def history(self, user, position, limit):
        return np.array([user], dtype=np.int32)

    def target(self, user, position):
        return 20 + user


class Table:
    """Scores -item, but what a user's own table says first."""

    version = "table"

    def __init__(self, **own):
        self.own = own
        self.asked = []

    def score(self, histories, candidates):
        self.asked.append(candidates)
        scores = np.where(candidates < 0, np.nan, -candidates.astype(np.float32))
        for row, history in enumerate(histories):
            for item, score in self.own.get(f"u{history[0]}", {}).items():
                scores[row, candidates[row] == item] = score
        return scores


def test_the_gate_at_the_start_by_hand():
    ten = np.arange(10)
    tops = [
        np.where(ten == 2, 20, ten),  # GT third
        np.where(ten == 1, 21, ten),  # GT second: not difficult at tau 0.2
        [*range(7), 23, -1, -1],  # GT absent; holds GT of the next user
        ten,  # GT absent, the ranker puts it behind all ten
        ten + 10,  # GT absent, and a distractor right behind it
    ]
    # Users 0, 1, 2 and 4: the ranker puts GT first. Distractors of user 4 come from 0..9 and 20, 21, all
    # scored above its own ten (-10..-19) but for 20 and 21.
    ranker = Table(u0={20: 5, 2: -50, 9: 4}, u1={21: 5, 1: -50}, u2={22: 5}, u4={24: 5})
    start = results([3, 2, 0, 0, 0], tops)
    settings = GateSettings(tau=0.2, rho=0.5)
    admitted = gate_at_start(start, Data(), ranker, settings, distractors=3, batch=2)
    assert [len(asked) for asked in ranker.asked] == [2, 2, 1]
    asked = np.concatenate(ranker.asked)
    assert asked.shape == (5, 1 + 10 + 3) and asked[:, 0].tolist() == [20, 21, 22, 23, 24]
    shown = set(np.unique(start.top_items[start.top_items >= 0]).tolist())
    for row, (own, drawn) in enumerate(zip(asked[:, 1:11], asked[:, 11:], strict=True)):
        assert len(set(drawn.tolist())) == 3 and set(drawn.tolist()) <= shown - set(own.tolist()) - {20 + row}
    # What users 0 to 2 can draw is scored below their own ten: behind rank 5 of the pool.
    assert admitted.tolist() == [True, False, True, False, False]
    gate_at_start(start, Data(), ranker, settings, distractors=30)
    everything_else = shown - set(range(10)) - {23}
    assert set(ranker.asked[-1][3, 11:].tolist()) == everything_else | {-1}
    halves = {
        parts: gate_at_start(start, Data(), ranker, settings.model_copy(update={"parts": parts}), 3).tolist()
        for parts in ("difficulty", "discriminability")
    }
    assert halves == {
        "difficulty": [True, False, True, True, True],
        "discriminability": [True, True, True, False, False],
    }
