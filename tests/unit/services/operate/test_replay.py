import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.actors.queue.fixed_ledger import FixedLedger
from sluice.actors.queue.fixed_order import FixedOrder
from sluice.actors.queue.leases import Push
from sluice.actors.queue.ledger import RolloutLedger
from sluice.catalog.data.feed import PromptFeed
from sluice.services.operate.replay import Replay

EXAMPLES = 6
USERS, POSITIONS = np.arange(EXAMPLES, dtype=np.int32), np.arange(EXAMPLES, dtype=np.int32) + 1
BOUNDS = {"max_groups": 6, "max_bytes": 10_000, "lease_deadline_s": 5.0, "expected_bytes": 100}


def feed():
    return PromptFeed(USERS, POSITIONS, seed=3)


def ledger(fixed):
    if fixed:
        return FixedLedger(feed(), order=FixedOrder(step_groups=2, batch=2, publish_every=1, lag=1), **BOUNDS)
    return RolloutLedger(feed(), max_staleness=1, **BOUNDS)


def replay(events):
    played = Replay(EXAMPLES, feed().example)
    played.play(json.loads(json.dumps(events)))
    played.finish()
    return played


class Life:
    """A ledger, those that use it, and the journal that its checkpoints leave."""

    def __init__(self, fixed):
        self.fixed, self.book = fixed, ledger(fixed)
        self.step, self.now_s, self.held = 0, 0.0, []
        self.journal, self.saved = [], None

    def lease(self):
        self.held.append(self.book.lease("a", "1", 2, self.now_s))

    def push(self):
        pushes = [
            Push(
                lease_id=lease.lease_id,
                attempt=lease.attempt,
                reference="r",
                nbytes=100,
                version_min=lease.version if self.fixed else max(0, self.step - 1),
                version_max=self.step,
            )
            for lease in (self.held.pop(0) if self.held else ())
            if not lease.companion
        ]
        self.book.push("a", "1", pushes, self.now_s)

    def reject(self):
        if self.held and not self.fixed:
            self.book.reject("a", "1", self.held.pop(0), "broken")

    def die(self):
        self.book.revoke("a", "killed")
        self.held = []

    def expire(self):
        self.now_s += 6.0
        self.book.expire(self.now_s)

    def train(self):
        if self.book.allot(self.step, 0, 1, 2, self.step):
            self.book.ack(self.step, 0)
            self.step += 1

    def lose(self):
        groups = self.book.allot(self.step, 0, 1, 2, self.step)
        if groups:
            self.book.lost(self.step, 0, [groups[0].lease_id])

    def save(self):
        snapshot = json.loads(json.dumps(self.book.snapshot()))
        self.journal += snapshot.pop("journal")
        self.saved = (snapshot, len(self.journal), self.step)

    def resume(self):
        if self.saved:
            snapshot, kept, self.step = self.saved
            del self.journal[kept:]
            self.book.restore(snapshot)


MOVES = ["lease", "lease", "push", "push", "train", "reject", "die", "expire", "lose", "save", "resume"]


@pytest.mark.parametrize("fixed", [False, True])
@settings(max_examples=60, deadline=None)
@given(moves=st.lists(st.sampled_from(MOVES), max_size=60))
def test_the_journal_of_any_ledger_is_sound_and_says_what_its_snapshot_says(fixed, moves):
    life = Life(fixed)
    for move in [*moves, "save"]:
        getattr(life, move)()
    snapshot = life.saved[0]
    played = replay(life.journal)
    assert played.problems == []
    counted = played.counts()
    for name in ("issued", "trained", "stale", "invalid"):
        assert counted[name] == snapshot["counters"][name]
    assert played.in_flight == [row[0] for row in snapshot["outstanding"]]
    assert played.steps == life.step
    rows = played.epochs()
    assert sum(row["issued"] for row in rows) == counted["issued"]
    for row in rows:
        assert row["issued"] == row["trained"] + row["stale"] + row["invalid"] + row["in_flight"]
        assert row["issued"] <= EXAMPLES


def sound():
    order = [feed().example(place) for place in range(4)]
    return [
        {"event": "leased", "actor": "a", "leases": [[i, 1, *order[i]] for i in (0, 1)]},
        {"event": "leased", "actor": "b", "leases": [[i, 1, *order[i]] for i in (2, 3)]},
        {"event": "returned", "actor": "a", "leases": [[0, 1, 0, 0], [1, 1, 0, 0]]},
        {"event": "trained", "step": 0, "rank": 0, "version": 0, "leases": [0, 1]},
        {"event": "taken_back", "why": "b: killed", "leases": [2, 3]},
        {"event": "leased", "actor": "a", "leases": [[2, 2, *order[2]], [3, 2, *order[3]]]},
        {"event": "returned", "actor": "a", "leases": [[2, 2, 0, 0], [3, 2, 0, 0]]},
        {"event": "dropped", "as": "stale", "why": "old", "leases": [2]},
        {"event": "resumed", "leases": [3]},
    ]


def test_a_sound_journal_has_no_problem():
    played = replay(sound())
    assert played.problems == []
    assert played.counts() == {"issued": 4, "trained": 2, "stale": 1, "invalid": 0, "in_flight": 1}
    assert played.epochs() == [
        {"epoch": 0, "issued": 4, "trained": 2, "stale": 1, "invalid": 0, "in_flight": 1}
    ]


def changed(number, **fields):
    events = copy.deepcopy(sound())
    events[number] |= fields
    return events


def without(number):
    return sound()[:number] + sound()[number + 1 :]


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        (without(2), "event 3: prompt 0 was trained while it was leased"),
        (without(4), "event 5: prompt 2 was leased while it was leased"),
        ([*sound(), sound()[3]], "event 10: worker 0 trained on step 0 twice"),
        ([*sound(), sound()[3]], "event 10: prompt 0 was trained while it was ended"),
        (changed(3, leases=[0, 9]), "event 4: prompt 9 was trained while it was never leased"),
        (
            [*sound(), {"event": "trained", "step": 2, "leases": []}],
            "event 10: 1 steps were never trained on",
        ),
        (changed(5, leases=[[2, 1, 0, 1]]), "event 6: attempt 1 of prompt 2 came after a later one"),
        (
            changed(6, leases=[[2, 1, 0, 0]]),
            "event 7: attempt 1 of prompt 2 was returned and is not the latest",
        ),
        (
            changed(8, leases=[3, 4]),
            "event 9: the run was resumed with other prompts in flight than it had: [4]",
        ),
        (changed(7, event="lost"), "event 8: 'lost' is no event"),
        ([*sound(), sound()[0]], "event 10: prompt 0 was leased after its end"),
    ],
)
def test_what_cannot_have_happened_is_told(events, problem):
    assert any(told.startswith(problem) for told in replay(events).problems)


def test_a_prompt_out_of_the_feeds_order_is_told():
    user, position = feed().example(1)
    events = changed(0, leases=[[0, 1, user, position]])
    wanted = feed().example(0)
    assert (
        f"event 1: prompt 0 is user {user} at position {position}, and the feed has user {wanted[0]} at "
        f"position {wanted[1]} at its place 0"
    ) in replay(events).problems


def test_many_problems_are_counted():
    played = replay([{"event": "trained", "step": step, "leases": [step]} for step in range(30)])
    assert len(played.problems) == 20
    assert played.more_problems == 10
