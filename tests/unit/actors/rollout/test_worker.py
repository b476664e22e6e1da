from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sluice.actors.queue.fixed_ledger import FixedLedger
from sluice.actors.queue.fixed_order import FixedOrder
from sluice.actors.queue.leases import Push
from sluice.actors.queue.ledger import RolloutLedger
from sluice.actors.rollout.groups import assemble_groups
from sluice.actors.rollout.worker import RolloutWorker
from sluice.actors.settings import DecodeSettings, RolloutSettings
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import PolicyError, RankerError, RankerSilentError
from sluice.catalog.rollout_group import decode_group
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import UnverifiedWeights
from sluice.learner.ranker.output import RankerOutput
from tests.rollout_fakes import CODES, LAYOUT, FakeEngine, RowRanker, TinyDataset, examples, weights_at


class HandCall:
    """A call that is ready when the test says so."""

    def __init__(self, answer, ready=True):
        self.reference, self.answer, self.is_ready = object(), answer, ready

    def ready(self):
        return self.is_ready

    def result(self):
        value = self.answer() if callable(self.answer) else self.answer
        if isinstance(value, Exception):
            raise value
        return value


class LocalQueue:
    """A real ledger, reached without Ray."""

    def __init__(self, **bounds):
        defaults = {"max_groups": 64, "max_bytes": 10**6, "max_staleness": 2, "lease_deadline_s": 60.0}
        self.ledger = RolloutLedger(PromptFeed(*examples(24), seed=1), **(defaults | bounds))
        self.asked = 0

    def lease(self, count):
        self.asked += 1
        return HandCall(self.ledger.lease("a", "1", count, 0.0))

    def put(self, leases, records, versions, ranker_version):
        return [
            Push(
                lease_id=lease.lease_id,
                attempt=lease.attempt,
                reference=records.slice(row, 1),
                nbytes=records.slice(row, 1).nbytes,
                version_min=version_min,
                version_max=version_max,
                ranker_version=ranker_version,
            )
            for row, (lease, (version_min, version_max)) in enumerate(zip(leases, versions, strict=True))
        ]

    def push(self, pushes):
        return HandCall(self.ledger.push("a", "1", pushes, 0.0))

    def reject(self, leases, reason, *, again=False):
        return HandCall(self.ledger.reject("a", "1", leases, reason, again=again))

    def release(self, reason):
        return HandCall(self.ledger.revoke("a", reason, keep_queued=True))


class FixedQueue(LocalQueue):
    """The queue of a deterministic run: steps of eight prompts, two batches each."""

    def __init__(self, lag=0):
        super().__init__()
        self.ledger = FixedLedger(
            PromptFeed(*examples(24), seed=1),
            order=FixedOrder(step_groups=8, batch=4, publish_every=1, lag=lag),
            max_groups=64,
            max_bytes=10**6,
            lease_deadline_s=60.0,
        )


class LocalRanker:
    """Answers at once, later, or never."""

    def __init__(self, error=None, wrong=None):
        self.calls, self.hold, self.error, self.wrong = [], False, error, wrong or {}

    def submit(self, histories, candidates, examples):
        output = replace(RankerOutput.of(RowRanker().score(histories, candidates)), wrong=self.wrong)
        answer = SimpleNamespace(output=output, version="row-1", latency_s=0.5)
        call = HandCall(self.error or answer, ready=not self.hold)
        self.calls.append(call)
        return call


class Board:
    """Weights to hand out, in order."""

    def __init__(self, *weights):
        self.weights = list(weights)

    def poll(self, current_version):
        return UnverifiedWeights(self.weights.pop(0)) if self.weights else None

    def at(self, version, wait_s):
        return next((UnverifiedWeights(own) for own in self.weights if own.version == version), None)


class Clock:
    """One second per look."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 1.0
        return self.now_s


def worker(
    engine=None,
    queue=None,
    ranker=None,
    weights=None,
    constrained=False,
    exclude_seen=True,
    fixed=False,
    **settings,
):
    decode_settings = DecodeSettings(candidates=2, constrained=constrained)
    options = {"prompts_per_lease": 4, "leases_ahead": 2, "distractors": 2} | settings
    parts = SimpleNamespace(
        engine=engine or FakeEngine(), queue=queue or LocalQueue(), ranker=ranker or LocalRanker()
    )
    parts.worker = RolloutWorker(
        engine=parts.engine,
        queue=parts.queue,
        ranker=parts.ranker,
        weights=weights or Board(),
        dataset=TinyDataset(exclude_seen=exclude_seen),
        vocabulary=Vocabulary.of(CODES, LAYOUT),
        settings=RolloutSettings(decode=decode_settings, **options),
        seed=3,
        clock=Clock(),
        fixed=fixed,
    )
    return parts


def turn(parts, times):
    return [parts.worker.advance() for _ in range(times)]


def test_groups_reach_the_queue_with_all_their_parts():
    parts = worker()
    turn(parts, 6)
    pulled = parts.queue.ledger.allot(0, 0, 1, 4, 0)
    groups = [decode_group(group.reference) for group in pulled]
    assert [group.lease_id for group in groups] == [0, 1, 2, 3]
    returned = [event for event in parts.queue.ledger.journal.take() if event["event"] == "returned"]
    assert {event["ranker"] for event in returned} == {"row-1"}
    data = TinyDataset()
    for group in groups:
        assert group.history.tolist() == data.history(group.user, group.position, 3).tolist()
        assert group.target_item == data.target(group.user, group.position)
        made = [group.lease_id, group.lease_id + 1]
        assert group.candidate_items.tolist() == [item if item not in group.excluded else -1 for item in made]
        assert group.consumed == len(set(made) & set(group.excluded.tolist()))
        length = len(group.history) / 100
        items = np.where(group.candidate_items < 0, np.nan, group.candidate_items)
        np.testing.assert_allclose(group.candidate_scores, items + length, rtol=1e-6)
        assert group.target_score == pytest.approx(group.target_item + length)
        assert not set(group.distractor_items) & {*group.excluded, *group.candidate_items, group.target_item}
        assert (group.ranker_version, group.score_s) == ("row-1", 0.5)
        assert group.excluded.tolist() == data.seen(group.user, group.position).tolist()
    assert any(group.consumed for group in groups)
    assert any(len(group.distractor_items) == 2 for group in groups)


@pytest.mark.parametrize(
    ("constrained", "exclude_seen", "excludes"),
    [(True, True, True), (None, True, True), (False, True, True), (True, False, False)],
)
def test_the_engine_is_told_what_was_seen(constrained, exclude_seen, excludes):
    parts = worker(constrained=constrained, exclude_seen=exclude_seen, engine=FakeEngine(per_step=0))
    turn(parts, 3)
    leases = {entry.lease_id: entry for entry in parts.queue.ledger._prompts}
    for request in parts.engine.waiting:
        entry = leases[int(request.request_id.split("-")[0])]
        seen = TinyDataset().seen(entry.user, entry.position).tolist()
        assert request.excluded.tolist() == (seen if excludes else [])
        history = TinyDataset().history(entry.user, entry.position, 3)
        assert request.prompt.tolist() == [1, *LAYOUT.encode(CODES[history]).reshape(-1).tolist()]


@pytest.mark.parametrize("draw", ["uniform", "popularity", "ranker_middle"])
def test_distractors_are_drawn_as_the_settings_say(draw, monkeypatch):
    asked = []

    def spy(*args, **options):
        asked.append((options["draw"], options["shares"] is None))
        return assemble_groups(*args, **options)

    monkeypatch.setattr("sluice.actors.rollout.worker.assemble_groups", spy)
    parts = worker(distractor_draw=draw)
    turn(parts, 6)
    assert set(asked) == {(draw, draw != "popularity")}
    for group in parts.queue.ledger.allot(0, 0, 1, 4, 0):
        assert len(decode_group(group.reference).distractor_items) <= 2


class FewItems(TinyDataset):
    """Odd users have all but two of the eight items."""

    def seen(self, user, position):
        return np.arange(6, dtype=np.int32) if user % 2 else super().seen(user, position)

    def target(self, user, position):
        return 6


def prompts_given_up(decode):
    parts = worker()
    made = RolloutWorker(
        engine=parts.engine,
        queue=parts.queue,
        ranker=parts.ranker,
        weights=Board(),
        dataset=FewItems(),
        vocabulary=Vocabulary.of(CODES, LAYOUT),
        settings=RolloutSettings(decode=decode, prompts_per_lease=4, leases_ahead=2, distractors=2),
        seed=3,
        clock=Clock(),
    )
    for _ in range(12):
        made.advance()
    return made.stats(), parts.queue.ledger


def test_a_prompt_with_too_few_items_left_is_given_up_and_the_others_go_on():
    stats, ledger = prompts_given_up(DecodeSettings(kind="stochastic_beam", candidates=3))
    status = ledger.status()
    users = {decode_group(group.reference).user for group in ledger.allot(0, 0, 1, 8, 0)}
    assert users and not any(user % 2 for user in users)
    assert 0 < status.invalid == stats.invalid and stats.late == 0  # the engine is not asked for them
    assert status.last_error.startswith("a: 2 of 8 items are left for user ")
    assert "lower rollout.decode.candidates" in status.last_error
    assert status.issued == status.invalid + status.in_flight


@pytest.mark.parametrize(
    "decode",
    [
        DecodeSettings(kind="stochastic_beam", candidates=2),  # as many as there are
        DecodeSettings(kind="sample", candidates=3),  # may repeat an item
        DecodeSettings(kind="stochastic_beam", candidates=3, constrained=False),
    ],
)
def test_no_prompt_is_given_up_that_can_be_served(decode):
    stats, _ = prompts_given_up(decode)
    assert stats.invalid == 0 and stats.groups > 0


def test_the_engine_is_kept_supplied_ahead():
    parts = worker(engine=FakeEngine(per_step=0))
    turn(parts, 10)
    assert parts.engine.in_flight == 12  # two leases of four, and one that waits its turn
    assert parts.queue.asked == 3


def test_generation_goes_on_while_the_ranker_thinks_but_not_without_bound():
    parts = worker()
    parts.ranker.hold = True
    turn(parts, 40)
    assert (
        len(parts.ranker.calls) == 3
    )  # leases_ahead, and the one that was let through when they were reached
    assert parts.queue.ledger.status().leased == 12
    assert parts.engine.in_flight == 0
    for call in parts.ranker.calls:
        call.is_ready = True
    assert parts.worker.advance()
    assert parts.queue.ledger.status().queued == 12


def test_new_weights_are_swapped_in_before_the_next_step_and_stamp_the_groups():
    parts = worker(weights=Board(weights_at(5)), engine=FakeEngine(per_step=2))
    turn(parts, 10)
    assert parts.engine.loaded == [5]
    groups = parts.queue.ledger.allot(0, 0, 1, 4, 5)
    assert {decode_group(group.reference).version_min for group in groups} == {5}
    stats = parts.worker.stats()
    assert (stats.swaps, stats.time["load_weights"], stats.version) == (1, 1.0, 5)


def test_damaged_weights_end_the_worker_before_the_engine_makes_another_step():
    damaged = weights_at(5)
    damaged.buffers["torch.float32"][3] ^= 1
    parts = worker(weights=Board(weights_at(4), damaged), engine=FakeEngine(per_step=0))
    turn(parts, 1)
    with pytest.raises(PolicyError, match="weights version 5 arrived damaged"):
        turn(parts, 1)
    assert parts.engine.loaded == [4, 5]
    assert parts.engine.steps == 0


def test_a_ranker_that_gives_up_makes_the_groups_invalid_and_says_why():
    parts = worker(ranker=LocalRanker(error=RankerError("three replicas are down")))
    turn(parts, 6)
    status = parts.queue.ledger.status()
    assert status.invalid >= 4
    assert status.invalid == parts.worker.stats().invalid
    assert status.last_error == "a: three replicas are down"
    assert status.issued == status.invalid + status.in_flight


def test_a_prompt_without_right_scores_is_lost_alone_and_named():
    parts = worker(ranker=LocalRanker(wrong={1: "the ranker gave nan to item 5"}))
    turn(parts, 6)
    status = parts.queue.ledger.status()
    assert status.invalid == parts.worker.stats().invalid > 0
    assert status.queued == 3 * status.invalid, "three of four come through"
    assert status.last_error.startswith("a: user ")
    assert status.last_error.endswith(": the ranker gave nan to item 5")
    kept = {entry.lease_id for entry in parts.queue.ledger._prompts if entry.push is not None}
    assert {lease_id % 4 for lease_id in kept} == {0, 2, 3}


def test_prompts_for_which_nobody_answered_are_given_back():
    parts = worker(ranker=LocalRanker(error=RankerSilentError("no answer within 30 s")))
    turn(parts, 6)
    status = parts.queue.ledger.status()
    assert parts.worker.stats().invalid == 0
    assert status.reissued > 0 and status.last_error == "a: no answer within 30 s"


def test_a_failing_engine_ends_the_worker():
    parts = worker(engine=FakeEngine(fail_at=2))
    with pytest.raises(MemoryError, match="ran out of memory"):
        turn(parts, 10)


def test_a_full_queue_keeps_the_finished_groups_until_there_is_room():
    parts = worker(queue=LocalQueue(max_groups=4, max_bytes=600, expected_bytes=100))
    turn(parts, 8)
    status = parts.queue.ledger.status()
    assert 0 < status.queued < 4
    assert status.queued + status.leased == 4
    before = status.queued
    trained = 0
    for step in range(4):
        parts.queue.ledger.allot(step, 0, 1, 1, 0)
        trained += parts.queue.ledger.ack(step, 0)
        turn(parts, 2)
        assert parts.queue.ledger.status().queued_bytes <= 600
    assert trained == 4 > before
    assert parts.worker.stats().groups >= 4
    assert parts.queue.ledger.status().invalid == 0


def test_groups_of_a_revoked_lease_are_counted_as_late():
    parts = worker()
    parts.ranker.hold = True
    turn(parts, 4)
    parts.queue.ledger.revoke("a", "expired")
    held = list(parts.ranker.calls)
    for call in held:
        call.is_ready = True
    turn(parts, 2)
    assert parts.worker.stats().late == 4 * len(held)


def test_without_work_there_is_no_move_and_something_to_wait_for():
    parts = worker(queue=LocalQueue(max_groups=4), engine=FakeEngine(per_step=0))
    parts.queue.lease = lambda count: HandCall((), ready=False)
    assert turn(parts, 3) == [True, False, False]
    with parts.worker.waiting() as references:
        assert len(references) == 1
    assert parts.worker.stats().time["wait_prompts"] == 1.0


def test_a_wait_is_named_after_whom_it_waits_for():
    parts = worker(leases_ahead=1)
    parts.ranker.hold = True
    turn(parts, 40)
    with parts.worker.waiting() as references:
        assert references == [call.reference for call in parts.ranker.calls]
    parts.queue.push = lambda pushes: HandCall(None, ready=False)
    for call in parts.ranker.calls:
        call.is_ready = True
    turn(parts, 1)
    with parts.worker.waiting() as references:
        assert len(references) == 2
    time = parts.worker.stats().time
    assert (time["wait_ranker"], time["wait_room"]) == (1.0, 1.0)
    assert "wait_prompts" not in time


def test_the_time_of_a_worker_adds_up():
    parts = worker(weights=Board(weights_at(5)), engine=FakeEngine(per_step=2))
    began_s = parts.worker._clock.now_s
    for _ in range(20):
        if not parts.worker.advance():
            with parts.worker.waiting():
                pass
    stats = parts.worker.stats()
    assert stats.time["generate"] == parts.engine.steps * 1.0
    assert {"serve", "generate", "load_weights"} <= set(stats.time)
    assert sum(stats.time.values()) == parts.worker._clock.now_s - began_s
    assert stats.score_s == 0.5 * parts.worker.stats().batches > 0


def train(parts, step):
    groups = parts.queue.ledger.allot(step, 0, 1, 8, step)
    assert groups is not None
    parts.queue.ledger.ack(step, 0)
    return [decode_group(group.reference) for group in groups]


def test_a_fixed_order_is_served_batch_by_batch_by_the_weights_that_it_names():
    engine, board = FakeEngine(per_step=3), Board(weights_at(2), weights_at(1))
    parts = worker(engine=engine, queue=FixedQueue(), weights=board, fixed=True)
    for step in range(3):
        turn(parts, 20)
        groups = train(parts, step)
        assert [group.lease_id for group in groups] == list(range(8 * step, 8 * step + 8))
        assert {(group.version_min, group.version_max) for group in groups} == {(step, step)}
    assert engine.loaded == [1, 2]
    assert engine.forgotten == 6  # before each batch, so that none depends on the one before


def test_two_batches_of_a_fixed_order_are_never_in_the_engine_together():
    engine = FakeEngine(per_step=3)
    parts = worker(engine=engine, queue=FixedQueue(lag=2), fixed=True)
    for _ in range(40):
        turn(parts, 1)
        assert len({int(request.request_id) // 4 for request in engine.waiting}) <= 1


def test_leases_whose_weights_do_not_come_are_given_back_and_leased_again():
    parts = worker(queue=FixedQueue(), fixed=True)
    turn(parts, 20)
    train(parts, 0)
    turn(parts, 4)  # the next batch is leased, for weights that nobody has published
    assert parts.queue.ledger.status().leased == 4
    # The learner goes back: the leases are nobody's.
    parts.queue.ledger.restore(parts.queue.ledger.snapshot())
    turn(parts, 40)
    assert parts.worker.stats().invalid == 0
    parts.worker._weights.weights = [weights_at(1)]
    turn(parts, 60)
    assert [group.lease_id for group in train(parts, 1)] == list(range(8, 16))


def test_companions_are_generated_and_not_pushed():
    parts = worker(queue=FixedQueue(), fixed=True)
    turn(parts, 20)
    ledger = parts.queue.ledger
    first = {group.lease_id: decode_group(group.reference) for group in ledger.allot(0, 0, 1, 8, 0)}
    ledger.lost(0, 0, [2])
    turn(parts, 20)
    assert parts.worker.stats().late == 0
    again = {group.lease_id: decode_group(group.reference) for group in ledger.allot(0, 0, 1, 8, 0)}
    assert again[2].distractor_items.tolist() == first[2].distractor_items.tolist()
    assert parts.worker.stats().groups == 9
