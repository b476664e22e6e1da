"""The supervisor of a fleet: a thread that sees who is dead or hung, names and replaces it, and ends the run
when that happens too often.

    reads      pings of every actor (`sluice.cluster.supervision`), each rollout actor's `run()`, the queue's
               counts
    decides    by pure functions: `Vitals.judge`, `decide_restart`, `LossBudget.over`
    acts       kills what hangs (Ray starts its process again), takes its leases back, lets it run again;
               over a budget it tells the queue, and with it the learner, that no more groups will come
    waits for  nobody who has not just answered
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from sluice.actors.calls import reason_of
from sluice.actors.queue.budget import LossBudget
from sluice.actors.queue.client import QueueClient
from sluice.actors.queue.leases import QueueStatus
from sluice.actors.rollout.actor import RolloutClients
from sluice.actors.settings import QueueSettings
from sluice.catalog.errors import RankerError, RunError, SluiceError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.failure import Decision, decide_restart
from sluice.cluster.metrics import MetricSet
from sluice.cluster.settings import ClusterSettings
from sluice.cluster.supervision import Bounds, Health, Pulse, Verdict, Vitals

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_PING_EVERY_S = 2.0
_AWAY_S = 10.0  # a turn of this thread that took longer says nothing about anybody else
_QUIET_S = 10.0  # a queue that has been silent for so long is asked for nothing
_TELL_EVERY_S = 30.0
_SETTING = "cluster.max_actor_restarts"
_NO_ANSWER, _REFUSED = object(), object()


@dataclass
class Component:
    """An actor that is watched."""

    name: str
    handle: Any
    bounds: Bounds
    ask: Callable[[Any], Any]  # sends a ping; gives the reference of its answer
    read: Callable[[Any, int], Pulse]  # the answer, and how many there have been
    vitals: Vitals
    restarts: int = 0
    ping: Any = None
    asked_s: float = float("-inf")
    answers: int = 0
    verdict: Verdict = field(default_factory=lambda: Verdict(health=Health.STARTING))

    def answer(self) -> Any:
        """What the ping under way brought: an answer, `_REFUSED`, or `_NO_ANSWER` yet; sends the next one in
        its time.
        """
        now_s = time.monotonic()
        if self.ping is None:
            if now_s - self.asked_s >= _PING_EVERY_S:
                self.ping, self.asked_s = self.ask(self.handle), now_s
            return _NO_ANSWER
        if not ray.wait([self.ping], timeout=0)[0]:
            return _NO_ANSWER
        ping, self.ping = self.ping, None
        try:
            answer = ray.get(ping)
        except ActorDiedError as error:
            self.vitals.bury(reason_of(error))
            return _NO_ANSWER
        except RayError:  # its process is being started again
            return _REFUSED
        self.answers += 1
        return answer


@dataclass
class Rollout:
    """A rollout actor and its `run`."""

    name: str
    handle: Any  # of a RolloutActor
    vocabulary: ray.ObjectRef[Vocabulary]
    clients: RolloutClients
    started: ray.ObjectRef[float]  # the engine is there
    running: ray.ObjectRef[Any] | None = None
    restarts: int = 0
    due_s: float | None = None  # when it is to run again
    killed_wait_s: float | None = None  # we killed it, which is counted: how long to wait after that

    def begin(self) -> None:
        """Run once the engine is there."""
        self.running = self.handle.run.remote(self.started, self.vocabulary, self.clients)

    def begin_again(self) -> None:
        """Run in the actor that replaces a dead one: `start` is retried until Ray has replaced it, `run`
        never is.
        """
        self.due_s = None
        self.started = self.handle.start.remote(self.vocabulary)
        self.begin()


class Supervisor:
    """Watches from `begin` to `stop`."""

    def __init__(
        self,
        queue: QueueClient,
        rollouts: Sequence[Rollout],
        *,
        rankers: Sequence[Any] = (),
        boards: Mapping[str, Any] = {},
        cluster: ClusterSettings,
        settings: QueueSettings,
        ranker_timeout_s: float = 0.0,
        beside: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        """`beside` is called in every turn; `tell` gets a line for whoever follows the run."""
        self._queue, self._rollouts = queue, {rollout.name: rollout for rollout in rollouts}
        self._max_restarts, self._beside, self._tell = cluster.max_actor_restarts, beside, tell
        self._budget, self._metrics = LossBudget(settings), MetricSet()
        self.failure: SluiceError | None = None
        self._status: QueueStatus | None = None
        self._given_up: tuple[str, ...] = ()
        self._told_s, self._invalid_told, self._turned_s = float("-inf"), 0, time.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.components = [
            _watch_queue(queue, cluster),
            *(_watch_board(name, handle, cluster) for name, handle in boards.items()),
            *(
                _watch(f"ranker-{index}", handle, cluster, ranker_timeout_s)
                for index, handle in enumerate(rankers)
            ),
            *(_watch(rollout.name, rollout.handle, cluster) for rollout in rollouts),
        ]

    @property
    def restarts(self) -> int:
        """Actors replaced so far."""
        of_rollouts = sum(rollout.restarts for rollout in self._rollouts.values())
        return of_rollouts + sum(component.restarts for component in self.components)

    def begin(self) -> None:
        """Watch from a thread of its own; all actors are there, or loading."""
        self._thread = threading.Thread(target=self._run, name="fleet-supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Replace nobody any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def describe(self) -> str:
        """Who is not fine, for the message of a run that ends; "" when all are."""
        ill = [
            f"{component.name} is {component.verdict.health.value}"
            f"{f' ({component.verdict.reason})' if component.verdict.reason else ''}"
            for component in self.components
            if component.verdict.health is not Health.FINE
        ]
        return f"{'; '.join(ill)}." if ill else ""

    def _run(self) -> None:
        self._turned_s = time.monotonic()
        for component in self.components:
            component.vitals.renew(self._turned_s)
        while not self._stopping.is_set() and self.failure is None:
            try:
                self._turn()
            except RunError as error:  # the queue did not answer; it is watched, like everybody
                logger.warning("the supervisor goes on without an answer: %s", error)

    def _turn(self) -> None:
        self._beside()
        self._look()
        queue = self.components[0]
        if queue.vitals.silent_s(time.monotonic()) > _QUIET_S:
            self._stopping.wait(_POLL_S)
            return  # nothing below can be done without it
        self._check_budget()
        now_s = time.monotonic()
        for rollout in self._rollouts.values():
            if rollout.due_s is not None and now_s >= rollout.due_s:
                rollout.begin_again()
        running = {r.running: r for r in self._rollouts.values() if r.running is not None}
        if not running:
            self._stopping.wait(_POLL_S)
            return
        ended, _ = ray.wait(list(running), timeout=_POLL_S)
        for reference in ended:
            if not self._stopping.is_set() and self.failure is None:
                self._replace(running[reference])

    def _look(self) -> None:
        """See who answers, and replace who hangs."""
        now_s = time.monotonic()
        if now_s - self._turned_s > _AWAY_S:
            for component in self.components:
                component.vitals.excuse(now_s - self._turned_s)
        self._turned_s = now_s
        for component in self.components:
            if self._see(component, component.answer(), now_s) and component.name not in self._rollouts:
                self._note_restart(component)
            component.verdict = component.vitals.judge(now_s, component.bounds)
            if component.verdict.health is Health.HUNG:
                self._replace_hung(component)
            elif component.verdict.health is Health.DEAD and component.name not in self._rollouts:
                self.fail(RunError(f"{component.name} is dead: {component.verdict.reason}"))
            if self.failure is not None:
                return

    def _see(self, component: Component, answer: Any, now_s: float) -> bool:
        """Take an answer in; returns whether it shows that Ray has replaced the process by itself."""
        if answer is _NO_ANSWER:
            return False
        if answer is _REFUSED:
            return component.vitals.lose(now_s)
        if isinstance(answer, QueueStatus):
            self._status = answer
        return component.vitals.see(component.read(answer, component.answers), now_s)

    def _replace_hung(self, component: Component) -> None:
        rollout = self._rollouts.get(component.name)
        target = rollout or component
        decision = self._decide(component.name, target.restarts, component.verdict.reason)
        self._tell(decision.message)
        if not decision.restart:
            self.fail(RunError(decision.message))
            return
        target.restarts = decision.restarts
        component.vitals.renew(time.monotonic())
        component.ping = None
        if rollout is not None:
            rollout.killed_wait_s = decision.wait_s
            if rollout.running is None:
                rollout.due_s = time.monotonic() + decision.wait_s
        ray.kill(component.handle, no_restart=False)
        self._note(component.name, decision.message)
        if rollout is not None:
            self._queue.revoke(rollout.name, component.verdict.reason)

    def _note_restart(self, component: Component) -> None:
        """Ray started its process again by itself."""
        decision = self._decide(component.name, component.restarts, "its process died")
        component.restarts = decision.restarts
        self._tell(decision.message)
        if decision.restart:
            self._note(component.name, decision.message)
        else:
            self.fail(RunError(decision.message))

    def _replace(self, rollout: Rollout) -> None:
        """Its `run` has ended."""
        assert rollout.running is not None
        reference, rollout.running = rollout.running, None
        try:
            ray.get(reference)
            reason = "its run ended though nobody stopped it"
        except RayError as error:
            reason = reason_of(error)
            broken = getattr(error, "cause", None)
            if isinstance(broken, RankerError):  # another actor would ask the same ranker
                self.fail(broken)
                return
        component = next((one for one in self.components if one.name == rollout.name), None)
        if component is not None:
            component.vitals.renew(time.monotonic())
        if rollout.killed_wait_s is not None:
            rollout.due_s, rollout.killed_wait_s = time.monotonic() + rollout.killed_wait_s, None
            return
        decision = self._decide(f"rollout actor {rollout.name}", rollout.restarts, reason)
        logger.warning("%s", decision.message)
        if not decision.restart:
            self.fail(RunError(decision.message))
            return
        self._note(rollout.name, decision.message)
        self._queue.revoke(rollout.name, reason)
        rollout.restarts = decision.restarts
        rollout.due_s = time.monotonic() + decision.wait_s

    def _decide(self, what: str, restarts: int, reason: str) -> Decision:
        return decide_restart(
            what, restarts=restarts, bound=self._max_restarts, setting=_SETTING, reason=reason
        )

    def _note(self, name: str, message: str) -> None:
        self._metrics.add("sluice_restarts_total", component=name)
        if name != self.components[0].name:  # the queue itself has nothing to be told while it starts
            self._queue.note_error(name, message)

    def _check_budget(self) -> None:
        status, self._status = self._status, None
        if status is None:
            return
        self._budget.see(status.accounting)
        over = self._budget.over(status.last_error)
        if over is not None:
            self.fail(RunError(over))
        for sentence in status.given_up:
            if sentence not in self._given_up:
                self._tell(sentence)
        self._given_up = status.given_up
        now_s = time.monotonic()
        if status.invalid > self._invalid_told and now_s - self._told_s > _TELL_EVERY_S:
            self._tell(f"{status.invalid} groups given up as invalid so far; last error: {status.last_error}")
            self._told_s, self._invalid_told = now_s, status.invalid
        self._invalid_told = min(self._invalid_told, status.invalid)

    def fail(self, error: SluiceError) -> None:
        """End the rollouts: no more groups will come."""
        self.failure = error
        self._queue.fail(str(error))


def _watch(name: str, handle: Any, cluster: ClusterSettings, answer_s: float = 0.0) -> Component:
    """A rollout actor, or a ranker that may take `answer_s` for an answer."""
    hang_s = max(cluster.hang_timeout_s, answer_s)
    return Component(
        name=name,
        handle=handle,
        bounds=Bounds(start_s=cluster.start_timeout_s, hang_s=hang_s, slow_s=hang_s),
        ask=lambda handle: handle.pulse.remote(),
        read=lambda pulse, _answers: pulse,
        vitals=Vitals(time.monotonic()),
    )


def _watch_queue(queue: QueueClient, cluster: ClusterSettings) -> Component:
    """Its status is its answer. It computes nothing, so half of the time is enough to know."""

    def read(status: QueueStatus, answers: int) -> Pulse:
        return Pulse(process="", turns=answers, done=status.trained, works=False)

    return Component(
        name="the rollout queue",
        handle=queue.handle,
        bounds=_light_bounds(cluster),
        ask=lambda handle: handle.status.remote(),
        read=read,
        vitals=Vitals(time.monotonic()),
    )


def _watch_board(name: str, handle: Any, cluster: ClusterSettings) -> Component:
    def read(_status: Any, answers: int) -> Pulse:
        return Pulse(process="", turns=answers, done=answers, works=False)

    return Component(
        name=name,
        handle=handle,
        bounds=_light_bounds(cluster),
        ask=lambda handle: handle.status.remote(),
        read=read,
        vitals=Vitals(time.monotonic()),
    )


def _light_bounds(cluster: ClusterSettings) -> Bounds:
    hang_s = cluster.hang_timeout_s / 2
    return Bounds(start_s=cluster.start_timeout_s, hang_s=hang_s, slow_s=float("inf"))
