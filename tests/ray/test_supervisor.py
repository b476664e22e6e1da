"""Processes that are stopped, not dead: SIGSTOP of each kind of actor, while a learner goes on pulling."""

import os
import signal
import time

import psutil
import pytest
import ray

from sluice.actors.ranker.pool import RankerActor, RankerClient
from sluice.actors.settings import QueueSettings
from sluice.catalog.errors import RunError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.settings import ClusterSettings
from sluice.services.operate.faults import find_processes
from sluice.services.run.supervisor import Rollout, Supervisor
from tests.ray.conftest import WAIT_S
from tests.ray.test_rollout import Parts, train
from tests.rollout_fakes import CODES, LAYOUT, RowRanker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
HANG_S = 10.0


class Poisoned(RowRanker):
    """Its process ends at one prompt: the one of user 2 with three items before it."""

    needs_users = True

    def score(self, histories, candidates, users):
        if any(user == 2 and len(history) == 3 for user, history in zip(users, histories, strict=True)):
            os._exit(1)
        return super().score(histories, candidates)


class Run:
    """A fleet of one rollout actor and one ranker under a supervisor, and the steps of its learner."""

    def __init__(self, launch, ranker=RowRanker, **cluster):
        self.parts, self.told, self.step = Parts(launch, prompts=96), [], 0
        self.ranker = launch(
            RankerActor,
            {"max_concurrency": 1000, "max_task_retries": -1},
            ranker,
            max_batch=8,
            max_wait_ms=1.0,
        )
        self.parts.ranker = RankerClient((self.ranker,), timeout_s=WAIT_S, attempts=2)
        vocabulary = ray.put(Vocabulary.of(CODES, LAYOUT))
        actor = self.parts.rollout()
        self.rollout = Rollout(
            name="rollout-0",
            handle=actor,
            vocabulary=vocabulary,
            clients=self.parts.clients(),
            started=actor.start.remote(vocabulary),
        )
        self.rollout.begin()
        self.supervisor = Supervisor(
            self.parts.queue,
            [self.rollout],
            rankers=[self.ranker],
            boards={"the weight board": self.parts.board},
            cluster=ClusterSettings(**{"hang_timeout_s": HANG_S, "start_timeout_s": WAIT_S, **cluster}),
            settings=QueueSettings(),
            tell=self.told.append,
        )
        self.supervisor.begin()

    def train(self, steps):
        """Steps of a learner, which would fail if anybody made it wait too long."""
        for _ in range(steps):
            train(self.parts.queue, self.step, 4)
            self.step += 1

    def until_told(self, *words):
        end_s = time.monotonic() + 2 * WAIT_S  # a hang, and the start of another process
        while not any(all(word in line for word in words) for line in self.told):
            assert time.monotonic() < end_s, f"never told {words}: {self.told}"
            time.sleep(0.1)


@pytest.fixture
def begin(launch):
    runs = []

    def start(**options):
        runs.append(Run(launch, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.supervisor.stop()
        assert run.supervisor._thread is not None and not run.supervisor._thread.is_alive()


def process_of(handle):
    return psutil.Process(ray.get(handle.__ray_call__.remote(lambda _: os.getpid()), timeout=WAIT_S))


def stop(handle):
    os.kill(process_of(handle).pid, signal.SIGSTOP)


def stop_rollout():
    """The newest rollout actor, whose one thread for calls like that of `process_of` is at work."""
    process = find_processes("RolloutActor")[-1]
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_a_rollout_actor_that_is_stopped_is_named_and_replaced_while_the_learner_waits(begin):
    run = begin()
    run.train(2)
    stopped = stop_rollout()
    run.train(10)  # more than the queue held
    run.until_told(
        "rollout-0 failed and is started again (1 of at most 20 times): it has given no sign of life"
    )
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
    assert (run.rollout.restarts, run.supervisor.failure) == (1, None)
    run.train(2)
    status = run.parts.queue.status()
    assert status.trained == 4 * run.step and status.invalid == 0 and status.reissued > 0


def test_a_ranker_that_is_stopped_is_named_and_replaced(begin):
    run = begin()
    run.train(2)
    stop(run.ranker)
    run.train(10)
    run.until_told(
        "ranker-0 failed and is started again (1 of at most 20 times): it has given no sign of life"
    )
    assert run.supervisor.failure is None and run.parts.queue.status().invalid == 0


def test_a_ranker_whose_process_dies_is_counted_until_its_bound(begin):
    run = begin(max_actor_restarts=1, hang_timeout_s=WAIT_S)  # a slow start is no hang
    run.train(1)
    for died in (1, 2):
        process_of(run.ranker).kill()
        run.until_told("ranker-0 failed", "1 of at most 1" if died == 1 else "after 1 restart")
    with pytest.raises(RunError, match=r"ranker-0 failed after 1 restart.*its process died"):
        while True:
            run.train(1)
    assert "its process died" in str(run.supervisor.failure)


def test_a_queue_that_is_stopped_is_named_and_replaced(begin):
    run = begin()
    run.train(2)
    stop(run.parts.queue.handle)
    run.until_told("the rollout queue failed and is started again", "no sign of life")
    deadline_s = time.monotonic() + WAIT_S
    while run.parts.queue.status().restored:  # the new one has lost its state and says so
        assert time.monotonic() < deadline_s
    run.parts.queue.restore(None)
    run.step = 0
    run.train(2)
    assert run.supervisor.failure is None


def test_a_prompt_that_kills_the_ranker_is_given_up_alone(begin):
    run = begin(ranker=Poisoned)
    while run.parts.queue.status().invalid == 0:
        run.train(1)
    run.train(2)
    status = run.parts.queue.status()
    assert status.invalid == 1 and status.trained == 4 * run.step
    run.until_told("the prompt of user 2 (a row of the data set) at position", "is given up")
    assert run.supervisor.failure is None and 0 < run.supervisor.restarts <= 8
