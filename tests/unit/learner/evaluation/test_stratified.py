"""The stratified analysis by hand: cells, changes, and the gate at the start."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.evaluation.stratified import (
    FEWEST_USERS,
    bands_of,
    gate_at_start,
    mean_ranks,
    rank_gain,
    stratify_users,
)
from sluice.learner.gate.settings import GateSettings


def results(ranks, top_items=None, users=None, width=20) -> UserResults:
    ranks = np.array(ranks)
    items = np.zeros((len(ranks), width)) if top_items is None else np.array(top_items)
    return UserResults(
        users=np.arange(len(ranks)) if users is None else np.array(users),
        positions=np.arange(len(ranks)),
        ranks=ranks,
        items=items.astype(np.int32),
        invalid=np.zeros(len(ranks)),
    )


# Six users with one test example each. What defines their cells are their validation examples.
JUDGED = {
    "start": results([1, 10, 11, 0, 0, 0]),
    "control": results([1, 5, 11, 0, 0, 7]),
    "best": results([2, 20, 5, 0, 3, 14]),
}
DEFINING = (results([1, 10, 11, 0, 0, 0]), results([3, 0, 11, 50, 0, 50], width=50))


def test_cells_by_hand():
    cells = stratify_users(JUDGED, DEFINING, np.array([True, False, True, True, False, False]))
    names = ("policy_rank", "ranker_rank", "examples", "admitted", "start_hr@10", "control_hr@10")
    assert [tuple(cell[name] for name in (*names, "best_hr@10")) for cell in cells] == [
        ("1-10", "1-10", 1, 1.0, 1.0, 1.0, 1.0),
        ("1-10", ">50", 1, 0.0, 1.0, 1.0, 0.0),
        ("11-20", "11-50", 1, 1.0, 0.0, 0.0, 1.0),
        (">20", "11-50", 2, 0.5, 0.0, 0.5, 0.0),
        (">20", ">50", 1, 0.0, 0.0, 0.0, 1.0),
    ]
    assert [cell["best-control"] for cell in cells] == [0, -1, 1, -0.5, 1]
    # log2 of 1/1, 10/5, 11/11, (21/21 and 21/7), 21/21
    assert [cell["control_rank_gain"] for cell in cells] == pytest.approx([0, 1, 0, np.log2(3) / 2, 0])
    # log2 of 1/2, 10/20, 11/5, (21/21 and 21/14), 21/3
    expected = [-1, -1, np.log2(11 / 5), np.log2(1.5) / 2, np.log2(7)]
    assert [cell["best_rank_gain"] for cell in cells] == pytest.approx(expected)


def test_what_is_measured_does_not_define_the_cells():
    """The same test ranks in reverse stay where the validation examples put their users."""
    reverse = {name: results(judged.ranks[::-1]) for name, judged in JUDGED.items()}
    cells, turned = stratify_users(JUDGED, DEFINING), stratify_users(reverse, DEFINING)
    assert [cell["examples"] for cell in cells] == [cell["examples"] for cell in turned]
    assert [cell["start_hr@10"] for cell in turned] == [0, 0, 0, 0.5, 1]


def test_policies_that_differ_by_chance_alone_differ_in_no_cell():
    """Cells by the measured ranks themselves would say that the top fell and the rest rose."""
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(2000), 2)

    def judged():
        return results(generator.integers(0, 21, len(users)), users=users)

    policies = {name: judged() for name in ("start", "control", "best")}
    cells = stratify_users(policies, (judged(), results(judged().ranks, users=users, width=50)))
    assert sum(cell["examples"] for cell in cells) == len(users) and len(cells) > 3
    for cell in cells:
        error = np.sqrt(10 / 21 * 11 / 21 / cell["examples"])
        assert abs(cell["start_hr@10"] - 10 / 21) < 3.5 * error
        assert abs(cell["best_hr@10"] - cell["start_hr@10"]) < 3.5 * np.sqrt(2) * error


def test_users_without_a_validation_example_are_in_no_cell():
    defining = tuple(
        results(judged.ranks[:4], users=judged.users[:4], width=judged.width) for judged in DEFINING
    )
    cells = stratify_users(JUDGED, defining)
    assert sum(cell["examples"] for cell in cells) == 4


def test_a_cell_has_its_paired_interval_over_users_or_says_that_it_is_too_small():
    many = FEWEST_USERS * 4
    users = np.repeat(np.arange(many), 3)
    start, control = results([0] * 3 * many, users=users), results([0] * 3 * many, users=users)
    best = results(np.tile([1, 0, 0], many), users=users)  # one of three examples of each user gained
    defining = (results([1] * many), results([1] * many, width=50))
    (cell,) = stratify_users({"start": start, "control": control, "best": best}, defining)
    assert (cell["users"], cell["examples"]) == (many, 3 * many)
    assert cell["best-control"] == pytest.approx(1 / 3)
    assert cell["best-control_interval"] == pytest.approx([1 / 3, 1 / 3])
    best = results(np.repeat([1, 0], [3 * many // 2] * 2), users=users)  # all examples of every other user
    (cell,) = stratify_users({"start": start, "control": control, "best": best}, defining)
    low, high = cell["best-control_interval"]
    assert 0.3 < low < 0.45 and 0.55 < high < 0.7
    few = [results(judged.ranks[:3], users=users[:3]) for judged in (start, control, best)]
    (cell,) = stratify_users(dict(zip(("start", "control", "best"), few, strict=True)), defining)
    assert cell["best-control_interval"] is None


def test_without_a_gate_nothing_is_said_of_it():
    assert all("admitted" not in cell for cell in stratify_users(JUDGED, DEFINING))


def test_a_user_s_rank_is_the_geometric_mean_of_its_targets():
    judged = results([10, 1, 4, 0, 7], users=[0, 3, 3, 5, 8], width=20)
    ranks = mean_ranks(judged, np.array([3, 0, 5, 0, 4, 9]))
    assert ranks[:4].tolist() == [2, 10, 21, 10]
    assert np.isnan(ranks[4:]).all()


def test_bands_meet_without_overlap():
    ranks = np.array([1, 10, 10.5, 20, 21, np.nan])
    assert {label: inside.tolist() for label, inside in bands_of(ranks, 20).items()} == {
        "1-10": [True, True, False, False, False, False],
        "11-20": [False, False, True, True, False, False],
        ">20": [False, False, False, False, True, False],
    }
    assert list(bands_of(ranks, 10)) == ["1-10", ">10"]


def test_rank_gain_by_hand():
    assert rank_gain(np.array([8, 0]), np.array([2, 8]), width=15) == pytest.approx((2 + 1) / 2)
    assert rank_gain(np.array([2]), np.array([0]), width=15) == pytest.approx(-3)


class Data:
    """Five users; user u's history is item u and the target item 20 + u."""

    def __init__(self, exclude_seen=False):
        self.settings = SimpleNamespace(max_history=5, exclude_seen=exclude_seen)

    def examples(self, split):
        assert split == "test"
        return SimpleNamespace(users=np.arange(5), positions=np.ones(5, dtype=int))

    def history(self, user, position, limit):
        return np.array([user], dtype=np.int32)

    def seen(self, user, position):
        return np.array([user, 10, 11], dtype=np.int32)

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


def test_a_ranker_of_users_is_told_whose_gate_it_is():
    class OfUsers(Table):
        needs_users = True
        users: tuple = ()

        def score(self, histories, candidates, users):
            self.users += tuple(users.tolist())
            return super().score(histories, candidates)

    ranker = OfUsers()
    tops = [np.arange(10) + 2 * row for row in range(5)]
    gate_at_start(results([0] * 5, tops), Data(), ranker, GateSettings(), distractors=3, batch=2)
    assert ranker.users == tuple(Data().examples("test").users.tolist())


def test_what_a_user_has_is_no_distractor_at_the_start_either():
    tops = [np.arange(10) + 2 * row for row in range(5)]
    for exclude_seen in (False, True):
        ranker = Table()
        gate_at_start(results([0] * 5, tops), Data(exclude_seen), ranker, GateSettings(), distractors=30)
        drawn = set(ranker.asked[0][0, 11:].tolist()) - {-1}
        assert drawn == set(range(10, 18)) - ({10, 11} if exclude_seen else set())
