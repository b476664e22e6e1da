"""A prompt that takes an actor down each time is given up, and its companions are not. No Ray is started."""

from sluice.actors.queue.leases import Push
from sluice.actors.queue.ledger import RolloutLedger
from sluice.catalog.data.feed import PromptFeed
from tests.rollout_fakes import examples


def ledger(**changes):
    bounds = {"max_groups": 16, "max_bytes": 10**6, "max_staleness": 2, "lease_deadline_s": 60.0}
    return RolloutLedger(PromptFeed(*examples(24), seed=1), **(bounds | changes))


def ids(leases):
    return [lease.lease_id for lease in leases]


def finish(book, actor, leases):
    pushes = [
        Push(
            lease_id=lease.lease_id,
            attempt=lease.attempt,
            reference=None,
            nbytes=10,
            version_min=0,
            version_max=0,
        )
        for lease in leases
    ]
    assert ids(leases) == list(book.push(actor, "1", pushes, 0.0).accepted)


def test_a_prompt_that_kills_whoever_has_it_is_given_up_alone_and_named():
    book, poison, deaths = ledger(), 2, 0
    while book.status().queued < 8 and deaths < 20:
        leases = book.lease("a", "1", 4, 0.0)
        if any(lease.lease_id == poison for lease in leases):
            deaths += 1
            if deaths == 3:
                assert ids(leases) == [poison]
                user, position = leases[0].user, leases[0].position
            book.revoke("a", "MemoryError: no room")
        else:
            finish(book, "a", leases)
    status = book.status()
    assert (deaths, status.invalid, status.queued) == (3, 1, 11)
    assert status.last_error.startswith(
        f"the prompt of user {user} (a row of the data set) at position {position} is"
    )
    assert status.given_up == (status.last_error,)
    assert "3 times" in status.last_error and "queue.max_prompt_failures = 3" in status.last_error


def test_companions_of_a_crash_come_in_batches_until_the_last_time():
    book = ledger()
    for _ in range(2):
        assert ids(book.lease("a", "1", 4, 0.0)) == [0, 1, 2, 3]
        book.revoke("a", "killed")
    assert ids(book.lease("a", "1", 4, 0.0)) == [0]


def test_a_suspect_is_alone_in_its_actor_while_others_work_on():
    book = ledger()
    for _ in range(2):
        book.lease("a", "1", 1, 0.0)
        book.revoke("a", "killed")
    fresh = book.lease("b", "1", 4, 0.0)
    assert ids(fresh) == [0], "whoever asks first has it"
    assert book.lease("b", "1", 4, 0.0) == (), "and gets nothing beside it"
    others = book.lease("c", "1", 4, 0.0)
    assert ids(others) == [1, 2, 3, 4]
    finish(book, "b", fresh)
    assert ids(book.lease("b", "1", 4, 0.0)) == [5, 6, 7, 8]


def test_an_actor_that_has_other_prompts_does_not_get_a_suspect():
    book = ledger()
    book.lease("a", "1", 1, 0.0)
    book.revoke("a", "killed")
    held = book.lease("a", "1", 1, 0.0)
    later = book.lease("a", "1", 1, 0.0)
    book.reject("a", "1", held, "no scores", again=True)
    assert book.lease("a", "1", 4, 0.0) == ()
    finish(book, "a", later)
    assert ids(book.lease("a", "1", 4, 0.0)) == [0]


def test_prompts_given_back_are_issued_again_and_counted_as_failed():
    book = ledger(max_failures=2)
    leases = book.lease("a", "1", 2, 0.0)
    assert book.reject("a", "1", leases, "nobody answered", again=True) == 2
    assert (book.status().invalid, book.status().waiting) == (0, 2)
    for lease_id in (0, 1):
        (alone,) = book.lease("a", "1", 2, 0.0)
        assert (alone.lease_id, alone.attempt) == (lease_id, 2)
        finish(book, "a", [alone])


def test_groups_that_are_lost_later_are_no_failure_of_their_prompt():
    book = ledger()
    for step in range(5):
        leases = book.lease("a", "1", 2, 0.0)
        finish(book, "a", leases)
        book.allot(step, 0, 1, 2, 0)
        book.lost(step, 0, ids(leases))
    assert book.status().invalid == 0 and ids(book.lease("a", "1", 2, 0.0)) == [0, 1]


def test_one_failure_at_most_means_that_every_prompt_goes_alone_only_once_it_failed():
    book = ledger(max_failures=1)
    assert ids(book.lease("a", "1", 4, 0.0)) == [0, 1, 2, 3]
    book.revoke("a", "killed")
    assert book.lease("a", "1", 4, 0.0) == () and book.status().invalid == 4
