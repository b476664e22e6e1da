import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sluice.actors.queue.leases import Lease, Push
from sluice.actors.queue.ledger import RolloutLedger
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import RunError

EXAMPLES = 12
USERS, POSITIONS = np.arange(EXAMPLES, dtype=np.int32), np.arange(EXAMPLES, dtype=np.int32) + 1


def ledger(**changes) -> RolloutLedger:
    bounds = {
        "max_groups": 8,
        "max_bytes": 1000,
        "max_staleness": 2,
        "lease_deadline_s": 60.0,
        "expected_bytes": 100,
    }
    return RolloutLedger(PromptFeed(USERS, POSITIONS, seed=3), **(bounds | changes))


def done(leases: tuple[Lease, ...], *, nbytes: int = 100, version: int = 0) -> list[Push]:
    return [
        Push(
            lease_id=lease.lease_id,
            attempt=lease.attempt,
            reference=f"ref-{lease.lease_id}-{lease.attempt}",
            row=10 + lease.lease_id,
            nbytes=nbytes,
            version_min=version,
            version_max=version,
        )
        for lease in leases
    ]


def fill(
    book: RolloutLedger, count: int, *, actor: str = "a", version: int = 0, nbytes: int = 100
) -> list[int]:
    leases = book.lease(actor, "1", count, 0.0)
    assert len(leases) == count
    return list(book.push(actor, "1", done(leases, version=version, nbytes=nbytes), 0.0).accepted)


def ids(groups) -> list[int]:
    return [group.lease_id for group in groups]


def test_leases_follow_the_feed_and_their_ids_count_up():
    leases = ledger().lease("a", "1", 4, 0.0)
    order = np.random.default_rng([3, 0]).permutation(EXAMPLES)[:4]
    assert [(lease.lease_id, lease.attempt, lease.user) for lease in leases] == [
        (i, 1, order[i]) for i in range(4)
    ]
    assert [lease.position for lease in leases] == [int(row) + 1 for row in order]


def test_staleness_is_that_of_the_oldest_token():
    book = ledger()
    (lease,) = book.lease("a", "1", 1, 0.0)
    (push,) = done((lease,), version=1)
    book.push("a", "1", [replace(push, version_max=3)], 0.0)
    book.allot(0, 0, 1, 1, 3)
    book.ack(0, 0)
    assert (book.status().staleness_mean, book.status().staleness_max) == (2.0, 2)


def test_a_group_goes_from_the_feed_to_trained():
    book = ledger()
    fill(book, 4)
    groups = book.allot(0, 0, 1, 4, 0)
    assert ids(groups) == [0, 1, 2, 3]
    assert (groups[2].reference, groups[2].row) == ("ref-2-1", 12)
    assert book.status().pulled == 4
    assert book.ack(0, 0) == 4
    assert book.status().accounting == {"issued": 4, "trained": 4, "stale": 0, "invalid": 0, "in_flight": 0}


def test_leased_and_queued_groups_together_respect_the_bound():
    book = ledger(max_groups=6)
    fill(book, 4)
    assert book.lease("a", "1", 4, 0.0) == ()  # 4 queued + 4 > 6, and nobody is short of groups
    assert len(book.lease("a", "1", 2, 0.0)) == 2
    assert book.lease("b", "1", 1, 0.0) == ()


def test_a_cut_batch_is_granted_only_to_feed_a_starving_learner():
    book = ledger(max_groups=6)
    fill(book, 4)
    assert book.allot(0, 0, 1, 6, 0) is None  # the learner needs 6
    assert len(book.lease("a", "1", 4, 0.0)) == 2
    assert book.lease("b", "1", 4, 0.0) == ()


def test_leasing_reserves_bytes_at_the_mean_size_seen():
    book = ledger(max_groups=100)
    assert len(book.lease("a", "1", 10, 0.0)) == 10  # 10 x the assumed 100
    assert book.lease("b", "1", 1, 0.0) == ()
    book = ledger(max_groups=100)
    fill(book, 2, nbytes=200)  # mean 200, 400 queued: room for 3
    assert book.lease("a", "1", 4, 0.0) == ()
    assert len(book.lease("a", "1", 3, 0.0)) == 3


def test_pushes_beyond_the_byte_bound_wait_and_keep_their_lease():
    book = ledger()
    leases = book.lease("a", "1", 3, 0.0)
    reply = book.push("a", "1", done(leases, nbytes=400), 50.0)
    assert (reply.accepted, reply.full) == ((0, 1), (2,))
    assert book.status().queued_bytes == 800
    assert book.expire(100.0) == 0  # the refused push renewed the lease
    book.allot(0, 0, 1, 1, 0)
    assert book.push("a", "1", done(leases[2:], nbytes=400), 50.0).accepted == (2,)


def test_exactly_the_bound_fits_and_one_byte_more_is_invalid():
    book = ledger()
    leases = book.lease("a", "1", 2, 0.0)
    assert book.push("a", "1", done(leases[:1], nbytes=1001), 0.0).oversized == (0,)
    assert "1001 bytes does not fit a queue of 1000 bytes: raise queue.max_mib" in book.status().last_error
    assert book.push("a", "1", done(leases[1:], nbytes=1000), 0.0).accepted == (1,)
    assert book.status().accounting == {"issued": 2, "trained": 0, "stale": 0, "invalid": 1, "in_flight": 1}


def test_groups_older_than_the_bound_are_dropped_and_counted():
    book = ledger()
    fill(book, 2, version=3)
    fill(book, 2, version=4)
    assert ids(book.allot(0, 0, 1, 2, 6)) == [2, 3]  # 6 - 3 > 2 >= 6 - 4
    assert book.status().stale == 2
    book.ack(0, 0)
    assert (book.status().staleness_mean, book.status().staleness_max) == (2.0, 2)


def test_a_step_is_allotted_to_all_ranks_or_to_none():
    book = ledger()
    fill(book, 3)
    assert book.allot(0, 1, 2, 2, 0) is None
    assert book.status().queued == 3
    fill(book, 1)
    assert ids(book.allot(0, 1, 2, 2, 0)) == [2, 3]
    assert ids(book.allot(0, 0, 2, 2, 0)) == [0, 1]
    assert ids(book.allot(0, 1, 2, 2, 9)) == [2, 3]  # asked again: the same, however far the learner has come
    assert book.ack(0, 1) == 2
    assert book.ack(0, 1) == 0
    assert book.ack(0, 0) == 2
    assert book.ack(0, 0) == 0
    assert book.status().trained == 4


def test_misuse_of_a_step_is_named():
    book = ledger()
    with pytest.raises(RunError, match="acknowledged step 0, which nobody has pulled"):
        book.ack(0, 0)
    fill(book, 4)
    book.allot(0, 0, 2, 2, 0)
    with pytest.raises(RunError, match="as 1 x 2 groups, but it was allotted as 2 x 2"):
        book.allot(0, 0, 1, 2, 0)
    with pytest.raises(RunError, match="rank 2 pulled step 0"):
        book.allot(0, 2, 2, 2, 0)
    book.ack(0, 0)
    with pytest.raises(RunError, match="again after it had been trained on"):
        book.allot(0, 0, 2, 2, 0)


def test_lost_groups_are_issued_again_and_their_slots_filled():
    book = ledger()
    fill(book, 3)
    book.allot(0, 0, 1, 3, 0)
    assert book.lost(0, 0, [1, 77]) == 1
    assert book.allot(0, 0, 1, 3, 0) is None
    with pytest.raises(RunError, match="not all delivered"):
        book.ack(0, 0)
    (again,) = book.lease("b", "1", 1, 0.0)
    assert (again.lease_id, again.attempt) == (1, 2)
    book.push("b", "1", done((again,)), 0.0)
    groups = book.allot(0, 0, 1, 3, 0)
    assert [(group.lease_id, group.reference) for group in groups] == [
        (0, "ref-0-1"),
        (2, "ref-2-1"),
        (1, "ref-1-2"),
    ]
    book.ack(0, 0)
    assert book.status().accounting == {"issued": 3, "trained": 3, "stale": 0, "invalid": 0, "in_flight": 0}
    assert book.status().reissued == 1


def test_revoking_takes_leases_and_queued_groups_but_not_pulled_ones():
    book = ledger()
    fill(book, 2)  # 0, 1: pulled below
    book.allot(0, 0, 1, 2, 0)
    fill(book, 2)  # 2, 3: queued
    held = book.lease("a", "1", 2, 0.0)  # 4, 5: leased
    fill(book, 1, actor="b")  # 6
    assert book.revoke("a", "killed") == 4
    assert book.status().last_error == "a: killed"
    assert book.push("a", "1", done(held), 0.0).late == (4, 5)
    assert [lease.lease_id for lease in book.lease("b", "1", 5, 0.0)] == [4, 5, 2, 3, 7]
    assert book.status().queued_bytes == 100


def test_a_stopped_actor_keeps_what_it_has_queued():
    book = ledger()
    fill(book, 2)
    book.lease("a", "1", 2, 0.0)
    assert book.revoke("a", "", keep_queued=True) == 2
    assert (book.status().queued, book.status().waiting) == (2, 2)


def test_a_new_incarnation_takes_the_old_one_s_place():
    book = ledger()
    fill(book, 2)
    held = book.lease("a", "1", 2, 0.0)
    assert [lease.lease_id for lease in book.lease("a", "2", 4, 0.0)] == [2, 3, 0, 1]
    assert book.push("a", "1", done(held), 0.0).late == (2, 3)
    assert book.lease("a", "1", 2, 0.0) == ()  # asked for before it died, heard of now
    assert book.status().leased_by == {"a": 4}


def test_leases_expire_at_their_deadline():
    book = ledger()
    held = book.lease("a", "1", 1, 10.0)
    assert book.expire(69.9) == 0
    assert book.expire(70.0) == 1
    assert "a: held a lease longer than 60 s" in book.status().last_error
    assert book.push("a", "1", done(held), 71.0).late == (0,)
    assert [(lease.lease_id, lease.attempt) for lease in book.lease("a", "1", 1, 71.0)] == [(0, 2)]


def test_rejected_leases_are_invalid_once():
    book = ledger()
    held = book.lease("a", "1", 2, 0.0)
    assert book.reject("a", "1", held, "no scores") == 2
    assert book.reject("a", "1", held, "no scores") == 0
    assert book.status().accounting == {"issued": 2, "trained": 0, "stale": 0, "invalid": 2, "in_flight": 0}
    assert book.status().last_error == "a: no scores"


def test_a_restored_ledger_skips_nothing_and_repeats_nothing():
    book = ledger()
    fill(book, 4)
    book.allot(0, 0, 1, 2, 0)
    book.ack(0, 0)  # 0, 1 trained
    book.lease("a", "1", 2, 0.0)  # 4, 5 leased; 2, 3 queued
    snapshot = json.loads(json.dumps(book.snapshot()))
    other = ledger()
    other.restore(snapshot)
    assert other.status().accounting == {"issued": 6, "trained": 2, "stale": 0, "invalid": 0, "in_flight": 4}
    leases = other.lease("z", "1", 8, 0.0)
    assert [lease.lease_id for lease in leases] == [2, 3, 4, 5, 6, 7, 8, 9]
    order = np.random.default_rng([3, 0]).permutation(EXAMPLES)
    assert [lease.user for lease in leases] == order[2:10].tolist()


def test_a_live_ledger_that_is_rewound_refuses_what_belongs_to_its_former_life():
    book = ledger()
    first = book.lease("a", "1", 2, 0.0)
    snapshot = book.snapshot()
    later = book.lease("a", "1", 2, 0.0)  # 2, 3
    book.restore(snapshot)
    assert book.push("a", "1", done(first + later), 0.0).late == (0, 1, 2, 3)
    again = book.lease("a", "1", 4, 0.0)
    assert [(lease.lease_id, lease.attempt) for lease in again] == [(0, 2), (1, 2), (4, 1), (5, 1)]
    assert [lease.user for lease in again[2:]] == [lease.user for lease in later]
    book.push("a", "1", done(again), 0.0)
    assert book.allot(0, 0, 1, 2, 0)
    book.restore(None)
    assert book.status().accounting == {"issued": 0, "trained": 0, "stale": 0, "invalid": 0, "in_flight": 0}
    assert [lease.user for lease in book.lease("a", "1", 2, 0.0)] == [lease.user for lease in first]


def test_work_done_before_a_learner_asked_is_kept_at_the_very_start():
    book = ledger()
    fill(book, 4)
    book.restore(None)
    assert book.status().accounting == {"issued": 4, "trained": 0, "stale": 0, "invalid": 0, "in_flight": 4}
    assert [group.lease_id for group in book.allot(0, 0, 1, 4, 0)] == [0, 1, 2, 3]


def test_an_attempt_after_the_snapshot_is_not_taken_for_one_after_the_restore():
    book = ledger()
    book.lease("a", "1", 1, 0.0)
    snapshot = book.snapshot()
    book.revoke("a", "killed")
    second = book.lease("a", "1", 1, 0.0)
    book.restore(snapshot)
    assert [lease.attempt for lease in book.lease("a", "1", 1, 0.0)] == [3]
    assert book.push("a", "1", done(second), 0.0).late == (0,)


def test_a_snapshot_of_another_version_is_refused():
    with pytest.raises(RunError, match="version 99, this release reads 1"):
        ledger().restore({"version": 99})


class LedgerMachine(RuleBasedStateMachine):
    """Any order of events, with a model that only counts how often each prompt of the feed was finished."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ledger(max_groups=6, max_bytes=900, max_staleness=1, lease_deadline_s=5.0)
        self.now_s, self.version, self.step = 0.0, 0, 0
        self.held: dict[str, list[Lease]] = {"a": [], "b": []}
        self.prompt_of: dict[int, tuple[int, int]] = {}
        self.finished: Counter[int] = Counter()
        self.saved = None

    actors = st.sampled_from(["a", "b"])

    @rule(actor=actors, count=st.integers(1, 4))
    def lease(self, actor, count):
        known = {entry.lease_id for entry in self.book._prompts}
        leases = self.book.lease(actor, "1", count, self.now_s)
        self.finished.update(known - {entry.lease_id for entry in self.book._prompts})  # failed too often
        for lease in leases:
            prompt = (lease.user, lease.position)
            assert self.prompt_of.setdefault(lease.lease_id, prompt) == prompt
            self.held[actor].append(lease)

    @rule(actor=actors, nbytes=st.sampled_from([50, 300, 901]), count=st.integers(1, 4))
    def push(self, actor, nbytes, count):
        pushes = done(tuple(self.held[actor][:count]), nbytes=nbytes, version=self.version)
        reply = self.book.push(actor, "1", pushes, self.now_s)
        settled = {*reply.accepted, *reply.late, *reply.oversized}
        self.finished.update(reply.oversized)
        self.held[actor] = [lease for lease in self.held[actor] if lease.lease_id not in settled]

    @rule(actor=actors)
    def reject(self, actor):
        before = self.book.status().invalid
        self.book.reject(actor, "1", self.held[actor][:1], "broken")
        if self.book.status().invalid > before:
            self.finished.update([self.held[actor][0].lease_id])
        self.held[actor] = self.held[actor][1:]

    @rule(actor=actors)
    def die(self, actor):
        self.book.revoke(actor, "killed")
        self.held[actor] = []

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def wait(self, seconds):
        self.now_s += seconds
        self.book.expire(self.now_s)

    @rule()
    def publish(self):
        self.version += 1

    @rule(lose=st.booleans())
    def train(self, lose):
        known = {entry.lease_id for entry in self.book._prompts}
        groups = self.book.allot(self.step, 0, 1, 2, self.version)
        self.finished.update(known - {entry.lease_id for entry in self.book._prompts})  # stale
        if groups is None:
            return
        if lose:
            assert self.book.lost(self.step, 0, [groups[0].lease_id]) == 1
            return
        assert self.book.ack(self.step, 0) == 2
        self.finished.update(ids(groups))
        self.step += 1

    @rule()
    def save(self):
        text = json.dumps(self.book.snapshot())
        self.saved = (text, self.finished.copy(), dict(self.prompt_of), self.step, self.book.status())

    @precondition(lambda self: self.saved)
    @rule()
    def resume_elsewhere(self):
        text, finished, prompts, self.step, before = self.saved
        self.finished, self.prompt_of = finished.copy(), dict(prompts)
        self.book = ledger(max_groups=6, max_bytes=900, max_staleness=1, lease_deadline_s=5.0)
        self.book.restore(json.loads(text))
        self.held = {"a": [], "b": []}
        assert self.book.status().accounting == before.accounting

    @invariant()
    def accounting_is_exact(self):
        status = self.book.status()
        assert status.issued == status.trained + status.stale + status.invalid + status.in_flight
        assert status.issued == len(self.prompt_of)
        assert status.trained + status.stale + status.invalid == self.finished.total()

    @invariant()
    def no_prompt_is_finished_twice_or_skipped(self):
        assert all(times == 1 for times in self.finished.values())
        out = {entry.lease_id for entry in self.book._prompts}
        assert not out & set(self.finished)
        assert out | set(self.finished) == set(self.prompt_of)
        feed = PromptFeed(USERS, POSITIONS, seed=3)
        assert self.prompt_of == {lease_id: feed.draw() for lease_id in range(len(self.prompt_of))}

    @invariant()
    def bounds_hold(self):
        status = self.book.status()
        assert status.leased + status.queued <= 6
        assert status.queued_bytes <= 900
        assert status.queued_bytes == sum(
            e.push.nbytes for e in self.book._prompts if e.state.name == "QUEUED"
        )


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
