import json

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sluice.actors.queue.fixed_ledger import ATTEMPTS, FixedLedger
from sluice.actors.queue.fixed_order import FixedOrder
from sluice.actors.queue.leases import Lease, Push
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import HopelessError, RunError

EXAMPLES = 12
USERS, POSITIONS = np.arange(EXAMPLES, dtype=np.int32), np.arange(EXAMPLES, dtype=np.int32) + 1
ORDER = FixedOrder(step_groups=4, batch=2, publish_every=1, lag=1)


def feed() -> PromptFeed:
    return PromptFeed(USERS, POSITIONS, seed=3)


def ledger(order: FixedOrder = ORDER, **changes) -> FixedLedger:
    bounds = {"max_groups": 8, "max_bytes": 10_000, "lease_deadline_s": 60.0, "expected_bytes": 100}
    return FixedLedger(feed(), order=order, **(bounds | changes))


def done(leases: tuple[Lease, ...], nbytes: int = 100) -> list[Push]:
    return [
        Push(
            lease_id=lease.lease_id,
            attempt=lease.attempt,
            reference=f"of-{lease.lease_id}",
            nbytes=nbytes,
            version_min=lease.version,
            version_max=lease.version,
        )
        for lease in leases
        if not lease.companion
    ]


def ids(groups) -> list[int]:
    return [group.lease_id for group in groups]


def serve(book: FixedLedger, actor: str = "a") -> tuple[Lease, ...]:
    leases = book.lease(actor, "1", 2, 0.0)
    book.push(actor, "1", done(leases), 0.0)
    return leases


def test_batches_come_in_the_feeds_order_for_weights_that_are_there():
    book = ledger(max_groups=100)
    batches = [book.lease(actor, "1", 2, 0.0) for actor in "abab"]
    assert [ids(batch) for batch in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {lease.version for batch in batches for lease in batch} == {0}
    own = feed()
    assert [(lease.user, lease.position) for batch in batches for lease in batch] == [
        own.draw() for _ in range(8)
    ]
    # Step 2 wants the weights of step 1, which nobody has trained yet.
    assert book.lease("a", "1", 2, 0.0) == ()
    for batch, actor in zip(batches, "abab", strict=True):
        book.push(actor, "1", done(batch), 0.0)
    assert ids(book.allot(0, 0, 1, 4, 0)) == [0, 1, 2, 3]
    assert book.lease("a", "1", 2, 0.0) == ()
    book.ack(0, 0)
    assert [(lease.lease_id, lease.version) for lease in book.lease("a", "1", 2, 0.0)] == [(8, 1), (9, 1)]


def test_without_a_lag_a_step_waits_for_the_weights_of_the_one_before():
    book = ledger(FixedOrder(step_groups=2, batch=2, publish_every=2, lag=0))
    assert [ids(serve(book)) for _ in range(3)] == [[0, 1], [2, 3], []]
    for step in range(2):
        book.allot(step, 0, 1, 2, 0)
        book.ack(step, 0)
    assert [lease.version for lease in serve(book)] == [1, 1]


def test_a_step_waits_for_its_own_groups_whatever_else_is_queued():
    book = ledger()
    first = book.lease("a", "1", 2, 0.0)
    assert [ids(serve(book, "b")) for _ in range(3)] == [[2, 3], [4, 5], [6, 7]]
    assert book.allot(0, 0, 2, 2, 0) is None
    book.push("a", "1", done(first), 0.0)
    assert ids(book.allot(0, 1, 2, 2, 0)) == [2, 3]
    assert ids(book.allot(0, 0, 2, 2, 0)) == [0, 1]


def test_what_an_actor_held_is_generated_again_first_even_when_the_queue_is_full():
    book = ledger(max_groups=4)
    serve(book, "b")
    first = book.lease("a", "1", 2, 0.0)
    assert book.lease("b", "1", 2, 0.0) == ()
    book.revoke("b", "killed")
    book.push("a", "1", done(first), 0.0)
    again = serve(book)
    assert [(lease.lease_id, lease.attempt, lease.version) for lease in again] == [(0, 2, 0), (1, 2, 0)]
    assert ids(book.allot(0, 0, 1, 4, 0)) == [0, 1, 2, 3]


def test_a_lost_group_is_generated_beside_those_of_its_batch_and_keeps_its_place():
    book = ledger()
    serve(book), serve(book)
    assert ids(book.allot(0, 0, 1, 4, 0)) == [0, 1, 2, 3]
    assert book.lost(0, 0, [2]) == 1
    assert book.allot(0, 0, 1, 4, 0) is None
    wanted, companion = serve(book)
    assert (wanted.lease_id, wanted.attempt, wanted.companion) == (2, 2, False)
    assert (companion.lease_id, companion.companion) == (3, True)
    assert (companion.user, companion.position) == feed().example(3)
    assert ids(book.allot(0, 0, 1, 4, 0)) == [0, 1, 2, 3]
    assert book.ack(0, 0) == 4


def test_bytes_turn_no_group_away_that_was_granted():
    book = ledger(max_bytes=450)
    first, second = book.lease("a", "1", 2, 0.0), book.lease("a", "1", 2, 0.0)
    assert book.push("a", "1", done(second, 200), 0.0).accepted == (2, 3)
    assert book.lease("a", "1", 2, 0.0) == ()
    assert book.push("a", "1", done(first, 200), 0.0).accepted == (0, 1)


def test_the_next_step_is_granted_whatever_the_bounds():
    book = ledger(max_bytes=150)
    assert [ids(serve(book)) for _ in range(3)] == [[0, 1], [2, 3], []]
    book.allot(0, 0, 1, 4, 0)
    assert [ids(serve(book)) for _ in range(3)] == [[4, 5], [6, 7], []]


def test_a_prompt_that_cannot_be_served_ends_the_run_and_is_not_left_out():
    book = ledger()
    for _ in range(ATTEMPTS):
        leases = book.lease("a", "1", 2, 0.0)
        assert book.reject("a", "1", leases, "the ranker failed") == 2
    assert book.status().invalid == 0
    user, position = feed().draw()
    with pytest.raises(
        HopelessError,
        match=f"user {user} at position {position} could not be served in 5 attempts.*ranker failed",
    ):
        book.allot(0, 0, 1, 4, 0)


def test_batches_of_another_size_and_steps_of_another_size_are_refused():
    book = ledger()
    with pytest.raises(RunError, match="asked for 3 prompts, and this run's batches have 2"):
        book.lease("a", "1", 3, 0.0)
    with pytest.raises(RunError, match="pulled as 1 x 2 groups, and this run's steps have 4"):
        book.allot(0, 0, 1, 2, 0)


def test_a_restored_ledger_counts_lease_ids_as_places_in_the_feed():
    book = ledger()
    for _ in range(3):
        serve(book)
    book.allot(0, 0, 1, 4, 0)
    book.ack(0, 0)
    snapshot = json.loads(json.dumps(book.snapshot()))
    ahead = [serve(book) for _ in range(3)]
    book.restore(snapshot)
    assert [ids(serve(book)) for _ in range(4)] == [[4, 5], *[ids(leases) for leases in ahead]]
    assert book.lease("a", "1", 2, 0.0) == ()
    elsewhere = ledger()
    elsewhere.restore(snapshot)
    assert ids(elsewhere.lease("c", "1", 2, 0.0)) == [4, 5]
    elsewhere.restore(None)
    assert ids(elsewhere.lease("c", "1", 2, 0.0)) == [0, 1]


def test_a_snapshot_of_another_order_is_refused():
    snapshot = ledger().snapshot()
    with pytest.raises(RunError, match=r"rollout\.prompts_per_lease"):
        ledger(FixedOrder(step_groups=4, batch=4, publish_every=1, lag=1)).restore(snapshot)
    del snapshot["order"]
    with pytest.raises(RunError, match="in the order None"):
        ledger().restore(snapshot)


class FixedMachine(RuleBasedStateMachine):
    """Any order of events: what is trained on is what an undisturbed run trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ledger(max_groups=6, max_bytes=900, lease_deadline_s=5.0)
        self.now_s, self.step = 0.0, 0
        self.held: dict[str, list[tuple[Lease, ...]]] = {"a": [], "b": []}
        self.trained: list[tuple[int, int, int, int]] = []
        self.saved = None

    actors = st.sampled_from(["a", "b"])

    @rule(actor=actors)
    def lease(self, actor):
        if leases := self.book.lease(actor, "1", 2, self.now_s):
            self.held[actor].append(leases)

    @rule(actor=actors, nbytes=st.sampled_from([50, 300]))
    def push(self, actor, nbytes):
        if self.held[actor]:
            reply = self.book.push(actor, "1", done(self.held[actor].pop(0), nbytes), self.now_s)
            assert not reply.full

    @rule(actor=actors)
    def die(self, actor):
        self.book.revoke(actor, "killed")
        self.held[actor] = []

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def wait(self, seconds):
        self.now_s += seconds
        self.book.expire(self.now_s)

    @rule(lose=st.booleans())
    def train(self, lose):
        shares = [self.book.allot(self.step, rank, 2, 2, self.step) for rank in range(2)]
        if None in shares:
            return
        if lose:
            assert self.book.lost(self.step, 0, [shares[0][1].lease_id]) == 1
            return
        for rank, share in enumerate(shares):
            for group in share:
                entry = self.book._prompts[group.lease_id]
                self.trained.append((group.lease_id, entry.user, entry.position, entry.push.version_min))
            assert self.book.ack(self.step, rank) == 2
        self.step += 1

    @rule()
    def save(self):
        self.saved = (json.dumps(self.book.snapshot()), self.step, list(self.trained))

    @precondition(lambda self: self.saved)
    @rule(same=st.booleans())
    def resume(self, same):
        text, self.step, trained = self.saved
        self.trained = list(trained)
        if not same:
            self.book = ledger(max_groups=6, max_bytes=900, lease_deadline_s=5.0)
            self.held = {"a": [], "b": []}
        self.book.restore(json.loads(text))

    @invariant()
    def what_is_trained_on_is_what_the_feed_says(self):
        own = feed()
        assert self.trained == [
            (lease_id, *own.draw(), ORDER.version_of(lease_id)) for lease_id in range(len(self.trained))
        ]

    @invariant()
    def nothing_is_dropped(self):
        status = self.book.status()
        assert status.stale == status.invalid == 0
        assert status.issued == status.trained + status.in_flight

    @invariant()
    def the_next_step_can_be_had(self):
        """Nobody waits for ever: once all that is held is given back, an actor can make the next step."""
        book = ledger(max_groups=6, max_bytes=900)
        book.restore(json.loads(json.dumps(self.book.snapshot())))
        while leases := book.lease("c", "1", 2, 0.0):
            book.push("c", "1", done(leases), 0.0)
        assert book.allot(self.step, 0, 1, 4, self.step)


FixedMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFixedMachine = FixedMachine.TestCase
