"""The rollout actor: a thin shell that gives a `RolloutWorker` its engine, its clients and a thread.

`run` works until `stop`; the two live in different concurrency groups, so `stop`, `stats` and `pulse` answer
while `run` is busy. Launch it with `ray.remote(**LAUNCH)(RolloutActor)`, and make it work with
`handle.run.remote(handle.start.remote(vocabulary), vocabulary, clients)`.

Ray does not retry a `run` that fails: whoever watches it takes the actor's leases back first. While the actor
is being restarted, Ray refuses every call that must not be retried, `run` among them; `start` may be retried,
as often as the actor may be restarted, so it waits for the new process, and `run` waits for the answer of
`start`. Calls may overtake each other, since those that Ray refused would otherwise be waited for as if they
were late.
"""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from sluice.actors.boards.catalogue_board import CatalogueSource
from sluice.actors.boards.weight_board import WeightSource
from sluice.actors.engines.engine import Engine
from sluice.actors.queue.client import QueueClient
from sluice.actors.ranker.pool import RankerClient
from sluice.actors.rollout.worker import RolloutStats, RolloutWorker
from sluice.actors.settings import RolloutSettings
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.environment import lower_thread_priority, raise_gc_threshold
from sluice.cluster.metrics import MetricSet
from sluice.cluster.supervision import Pulse

_IDLE_WAIT_S = 0.2  # how soon new weights or a stop are noticed while nothing else happens
_REPORT_EVERY_S = 2.0
_FIRST_VERSION_S = 60.0

LAUNCH: dict[str, Any] = {"concurrency_groups": {"control": 2}, "allow_out_of_order_execution": True}


@dataclass(frozen=True, kw_only=True)
class RolloutClients:
    """The other actors that a rollout actor works with."""

    queue: QueueClient
    ranker: RankerClient
    weights: WeightSource
    catalogues: CatalogueSource | None = None  # None: the catalogue never changes


class RolloutActor:
    """One engine in one process. Decorate with `ray.remote` where it is launched."""

    def __init__(
        self,
        *,
        name: str,
        engine_factory: Callable[[Vocabulary], Engine],
        dataset_factory: Callable[[], Any],
        settings: RolloutSettings,
        seed: int,
        gaps: Gaps = NO_GAPS,
        fixed: bool = False,
    ) -> None:
        """`name` stays the same over restarts; the queue knows the actor's leases by it. `fixed`: see
        `RolloutWorker`.

        The catalogue comes with `start` and `run`, the other actors with `run`: Ray restarts an actor from
        its constructor's arguments, which should not depend on an object in some node's store or on a handle.
        """
        self._name, self._engine_factory, self._dataset_factory = name, engine_factory, dataset_factory
        self._settings, self._seed, self._gaps, self._fixed = settings, seed, gaps, fixed
        self._incarnation = uuid.uuid4().hex
        self._engine: Engine | None = None
        self._dataset: Any = None
        self._stopped = threading.Event()
        self._turns, self._turning = 0, False  # of `run`'s loop
        self._stats = RolloutStats()
        self._reported_s = 0.0
        self._metrics = MetricSet()

    @ray.method(max_task_retries=-1)
    def start(self, vocabulary: Vocabulary) -> float:
        """Build the engine, if that has not been done; returns the seconds it took. `run` does it too."""
        started_s = time.monotonic()
        self._open_engine(vocabulary)
        return time.monotonic() - started_s

    def run(self, started: float, vocabulary: Vocabulary, clients: RolloutClients) -> RolloutStats:
        """Work until `stop`. Whatever the engine raises ends it; the next `run` builds a new engine.

        `started` is the answer of `start`, passed as a reference so that the one comes after the other.
        """
        del started
        engine = self._open_engine(vocabulary)
        holder = clients.queue.holder(self._name, incarnation=self._incarnation)
        worker = RolloutWorker(
            engine=engine,
            queue=holder,
            ranker=clients.ranker,
            weights=clients.weights,
            dataset=self._dataset,
            vocabulary=vocabulary,
            settings=self._settings,
            seed=self._seed,
            clock=time.monotonic,
            catalogues=clients.catalogues,
            gaps=self._gaps,
            fixed=self._fixed,
        )
        try:
            newer = None if self._fixed else clients.weights.newest(engine.version, _FIRST_VERSION_S)
            if newer is not None:
                worker.load_weights(newer)
            if clients.catalogues is not None:
                later = clients.catalogues.newest(vocabulary.version, _FIRST_VERSION_S)
                if later is not None:
                    worker.load_catalogue(later)
            self._turning = True
            while not self._stopped.is_set():
                self._turn(worker)
        finally:
            self._turning = False
            self._report(worker)
            # What is still in the engine belongs to this worker; another run must not meet it there.
            self._discard_engine()
        self._stopped.clear()
        holder.release("").result()
        return self._stats

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """End the `run` under way, or the next one."""
        self._stopped.set()

    @ray.method(concurrency_group="control")
    def node(self) -> str:
        """Id of the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group="control")
    def stats(self) -> RolloutStats:
        """Counts as of the last turn of `run`."""
        return self._stats

    @ray.method(concurrency_group="control")
    def pulse(self) -> Pulse:
        """Answered while `run` is busy, or stuck."""
        return Pulse(
            process=self._incarnation,
            turns=self._turns,
            done=self._stats.groups + self._stats.invalid,
            works=self._engine is not None and self._engine.in_flight > 0,
            started=self._turning,
        )

    def _open_engine(self, vocabulary: Vocabulary) -> Engine:
        """The engine, built now unless there is one."""
        if self._engine is None:
            # before the engine has threads of its own, which compute too
            lower_thread_priority(but=threading.get_native_id())
            self._dataset = self._dataset_factory()
            self._engine = self._engine_factory(vocabulary)
            raise_gc_threshold()
        return self._engine

    def _turn(self, worker: RolloutWorker) -> None:
        self._turns += 1
        if not worker.advance():
            with worker.waiting() as references:
                if references:
                    ray.wait(references, timeout=_IDLE_WAIT_S)
                else:
                    self._stopped.wait(_IDLE_WAIT_S)
        if time.monotonic() - self._reported_s > _REPORT_EVERY_S:
            self._report(worker)

    def _report(self, worker: RolloutWorker) -> None:
        before, self._stats = self._stats, worker.stats()
        self._reported_s = time.monotonic()
        self._metrics.set("sluice_rollout_groups", self._stats.groups, actor=self._name)
        self._metrics.set_times(self._name, self._stats.time)
        self._metrics.set("sluice_weight_version", self._stats.version, component=self._name)
        self._metrics.set("sluice_catalogue_version", self._stats.catalogue_version, component=self._name)
        now = self._stats
        loaded_s = now.time.get("load_weights", 0.0) - before.time.get("load_weights", 0.0)
        for name, count, spent_s in (
            ("sluice_weight_sync_seconds", now.swaps - before.swaps, loaded_s),
            ("sluice_ranker_latency_seconds", now.batches - before.batches, now.score_s - before.score_s),
        ):
            if count > 0:
                self._metrics.observe(name, spent_s / count, actor=self._name)

    def _discard_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
