"""What a supervisor does about what it sees. No Ray is started: references are answers, None is none yet."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from sluice.actors.settings import QueueSettings
from sluice.catalog.errors import RankerError, RunError
from sluice.cluster.settings import ClusterSettings
from sluice.cluster.supervision import Health, Pulse
from sluice.services.run import supervisor as module
from sluice.services.run.supervisor import Rollout, Supervisor
from tests.unit.services.run.queue_states import status


class Actor:
    """Pings bring `answer` each time; None: none comes."""

    def __init__(self, answer=None):
        self.answer, self.killed, self.begun = answer, 0, []
        remote = SimpleNamespace(remote=lambda: self.answer)
        self.pulse = self.status = remote
        self.start = SimpleNamespace(remote=lambda _vocabulary: "started")
        self.run = SimpleNamespace(remote=lambda *arguments: self.begun.append(arguments))


class Queue:
    def __init__(self):
        self.handle = Actor(status())
        self.failed, self.revoked, self.noted = [], [], []

    def fail(self, message):
        self.failed.append(message)

    def revoke(self, name, reason):
        self.revoked.append((name, reason))

    def note_error(self, source, message):
        self.noted.append(source)


class Scene:
    """A supervisor over a rollout actor and a ranker, and the clock."""

    def __init__(self, monkeypatch, **cluster):
        self.now_s, self.told, self.queue = 1000.0, [], Queue()
        self.actor, self.ranker = Actor(), Actor()
        self.rollout = Rollout(
            name="rollout-0", handle=self.actor, vocabulary="v", clients="c", started="s", running="run"
        )
        fake = SimpleNamespace(wait=self.wait, get=self.get, kill=self.kill)
        monkeypatch.setattr(module, "ray", fake)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)
        self.supervisor = Supervisor(
            self.queue,
            [self.rollout],
            rankers=[self.ranker],
            cluster=ClusterSettings(hang_timeout_s=60, **cluster),
            settings=QueueSettings(share_window=100),
            tell=self.told.append,
        )
        self.supervisor._metrics = SimpleNamespace(add=lambda *_, **__: None)
        self.supervisor._stopping = SimpleNamespace(wait=lambda _s: None, is_set=lambda: False)
        self.ended = None  # what `run` ended with
        self.turns = 0

    def wait(self, references, timeout=None):
        (reference, *_) = references
        come = reference is not None and (reference != "run" or self.ended is not None)
        return ([reference], []) if come else ([], [reference])

    def get(self, reference):
        value = self.ended if reference == "run" else reference
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, actor, no_restart):
        assert no_restart is False
        actor.killed += 1

    def alive(self, **changes):
        """A pulse of a loop that turns."""
        self.turns += 1
        return Pulse(**({"process": "one", "turns": self.turns, "done": self.turns, "works": True} | changes))

    def pass_time(self, seconds, *, rollout=True, ranker=True, queue=True):
        """Turns of two seconds, in which those actors answer."""
        for _ in range(int(seconds // 2)):
            self.now_s += 2
            self.actor.answer = self.alive() if rollout else None
            self.ranker.answer = self.alive() if ranker else None
            if not queue:
                self.queue.handle.answer = None
            self.supervisor._turn()


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def health(scene):
    return {component.name: component.verdict.health for component in scene.supervisor.components}


def test_who_answers_and_turns_is_left_alone(scene):
    scene.pass_time(300)
    assert set(health(scene).values()) == {Health.FINE} and scene.told == []
    assert (scene.actor.killed, scene.ranker.killed, scene.supervisor.describe()) == (0, 0, "")


def test_a_rollout_actor_without_a_sign_of_life_is_killed_and_its_leases_come_back(scene):
    scene.pass_time(10)
    scene.pass_time(70, rollout=False)
    assert (scene.actor.killed, scene.ranker.killed) == (1, 0)
    assert [name for name, _ in scene.queue.revoked] == ["rollout-0"]
    assert scene.told[0].startswith(
        "rollout-0 failed and is started again (1 of at most 20 times): it has given"
    )
    assert scene.actor.begun == [], "its process has yet to end"
    scene.ended = ActorDiedError()
    scene.pass_time(4)
    assert len(scene.actor.begun) == 1 and scene.rollout.restarts == 1, "it is not counted twice"


def test_a_ranker_without_a_sign_of_life_is_killed_alone(scene):
    scene.pass_time(10)
    scene.pass_time(70, ranker=False)
    assert (scene.actor.killed, scene.ranker.killed, scene.queue.revoked) == (0, 1, [])
    assert scene.told[0].startswith("ranker-0 failed and is started again")


def test_a_queue_without_a_sign_of_life_is_killed_sooner_and_asked_for_nothing(scene):
    scene.pass_time(10)
    scene.pass_time(40, queue=False)
    assert scene.queue.handle.killed == 1 and scene.queue.noted == []
    assert scene.told[0].startswith("the rollout queue failed and is started again")


def test_who_hangs_too_often_ends_the_run(monkeypatch):
    scene = Scene(monkeypatch, max_actor_restarts=0)
    scene.pass_time(10)
    scene.pass_time(70, ranker=False)
    assert scene.ranker.killed == 0
    assert (
        "ranker-0 failed after 0 restart(s), the most that cluster.max_actor_restarts"
        in scene.queue.failed[0]
    )
    assert str(scene.supervisor.failure) == scene.queue.failed[0]


def test_a_ranker_that_cannot_start_ends_the_run_with_its_own_words(scene):
    class NotMade(ActorDiedError):
        def __str__(self):
            return "error raised in its creation task\nValueError: no table"

    scene.ranker.answer = NotMade()
    for _ in range(3):
        scene.now_s += 2
        scene.supervisor._turn()
    assert str(scene.supervisor.failure) == "ranker-0 is dead: it could not start: ValueError: no table"


def test_a_process_that_ray_started_again_is_counted(scene):
    scene.pass_time(10)
    scene.ranker.answer = scene.alive(process="two")
    for _ in range(3):
        scene.now_s += 2
        scene.supervisor._turn()
    assert scene.supervisor.restarts == 1
    assert scene.told == ["ranker-0 failed and is started again (1 of at most 20 times): its process died"]


def test_a_ranker_that_ray_replaces_may_take_its_time_to_load(scene):
    scene.pass_time(10)
    scene.ranker.answer = ActorUnavailableError("restarting", b"0" * 16)
    for _ in range(60):
        scene.now_s += 2
        scene.actor.answer = scene.alive()
        scene.supervisor._turn()
    assert (scene.supervisor.restarts, scene.ranker.killed, len(scene.told)) == (1, 0, 1)


def test_a_supervisor_that_was_away_blames_nobody(scene):
    scene.pass_time(10)
    scene.now_s += 3600
    scene.pass_time(10)
    assert (scene.actor.killed, scene.ranker.killed, scene.queue.handle.killed) == (0, 0, 0)


def test_a_run_that_loses_too_many_groups_ends_with_the_last_error(scene):
    scene.pass_time(10)
    scene.queue.handle.answer = status(invalid=99, last_error="rollout-0: no scores")
    scene.pass_time(6)
    assert scene.supervisor.failure is None
    assert scene.told == ["99 groups given up as invalid so far; last error: rollout-0: no scores"]
    scene.queue.handle.answer = status(invalid=100, last_error="rollout-0: no scores")
    scene.pass_time(6)
    assert str(scene.supervisor.failure).startswith("100 of the last 100 groups were invalid")
    assert scene.queue.failed == [str(scene.supervisor.failure)]


def test_a_prompt_that_is_given_up_is_told_once(scene):
    scene.queue.handle.answer = status(given_up=("the prompt of user 2 is given up",))
    scene.pass_time(10)
    scene.queue.handle.answer = status(given_up=("the prompt of user 2 is given up", "user 3 too"))
    scene.pass_time(10)
    assert scene.told == ["the prompt of user 2 is given up", "user 3 too"]


@pytest.mark.parametrize(("cause", "ends"), [(RankerError("wrong answers"), True), (RunError("gone"), False)])
def test_a_ranker_that_is_broken_ends_the_run_without_a_restart(scene, cause, ends):
    scene.ended = RayTaskError("run", "", cause)
    scene.supervisor._replace(scene.rollout)
    assert (scene.supervisor.failure is cause, scene.queue.failed) == (
        ends,
        ["wrong answers"] if ends else [],
    )
    assert scene.rollout.restarts == (0 if ends else 1)
    assert (scene.rollout.due_s is None) is ends


def test_restarts_of_a_run_that_fails_over_and_over_come_ever_later(scene):
    scene.ended, waits = ActorUnavailableError("gone", b"0" * 16), []
    for _ in range(4):
        scene.rollout.running = "run"
        scene.supervisor._replace(scene.rollout)
        waits.append(scene.rollout.due_s - scene.now_s)
    assert waits == [0, 1, 2, 4]
