"""The actors of one run: rollout queue, weight board, ranker pool and rollout pool, started together and kept
alive.

consumes   the health of each rollout actor's `run()` reference
produces   restarts (the dead actor's prompts are issued again first) until the bound, then one clear error
waits for  placement and engine start, both bounded by the cluster settings
"""

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from sluice.actors.boards.catalogue_board import CatalogueBoard, CataloguePublisher, CatalogueSource
from sluice.actors.boards.weight_board import (
    KeptWeightBoard,
    WeightBoard,
    WeightPublisher,
    WeightSource,
)
from sluice.actors.calls import RayCall, get_result, reason_of
from sluice.actors.queue.actor import QueueActor
from sluice.actors.queue.client import QueueClient
from sluice.actors.queue.fixed_order import FixedOrder
from sluice.actors.ranker.pool import RankerActor, RankerClient
from sluice.actors.rollout.actor import LAUNCH, RolloutActor, RolloutClients
from sluice.catalog.data.changes import ChangingCatalogue
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import ClusterError, DataError, RankerError, RunError, SluiceError
from sluice.catalog.gaps import Gaps
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster import placement
from sluice.cluster.failure import decide_restart
from sluice.cluster.metrics import MetricSet
from sluice.learner.batches.sources import open_prompts
from sluice.learner.ranker.load import open_ranker
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.places import plan_run
from sluice.services.run.engines import engine_variables, open_engine
from sluice.services.run.trust import meter_factory

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_STOP_S = 30.0  # for an engine step, and for closing the engine
_STATS_S = 10.0
_ANSWER_S = 30.0  # for an answer that is there to arrive


@dataclass
class _Rollout:
    name: str
    handle: Any  # of a RolloutActor
    vocabulary: ray.ObjectRef[Vocabulary]
    clients: RolloutClients
    started: ray.ObjectRef[float]  # the engine is there
    running: ray.ObjectRef[Any] | None = None
    restarts: int = 0

    def begin(self) -> None:
        """Run once the engine is there."""
        self.running = self.handle.run.remote(self.started, self.vocabulary, self.clients)

    def begin_again(self) -> None:
        """Run in the actor that replaces a dead one: `start` is retried until Ray has replaced it, `run`
        never is.
        """
        self.started = self.handle.start.remote(self.vocabulary)
        self.begin()


@dataclass
class Fleet:
    """Created by `start_fleet`; `begin` lets the rollouts run, `stop` ends everything."""

    queue: QueueClient
    publisher: WeightPublisher
    catalogues: CataloguePublisher  # a later version published here reaches engines and learner
    catalogue_source: CatalogueSource
    rollouts: list[_Rollout]
    reservation: placement.Reservation
    max_restarts: int
    failure: SluiceError | None = None
    _metrics: MetricSet = field(default_factory=MetricSet)
    rankers: list[Any] = field(default_factory=list)
    _others: list[Any] = field(default_factory=list)
    open_vocabulary: Callable[[], Vocabulary] | None = None  # the first catalogue, one copy per node
    _changes: ChangingCatalogue | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _supervisor: threading.Thread | None = None

    @property
    def restarts(self) -> int:
        """Rollout actors replaced so far."""
        return sum(rollout.restarts for rollout in self.rollouts)

    def begin(self, timeout_s: float) -> None:
        """Wait for the engines (at most `timeout_s`), start all rollouts and watch them from a thread.

        Raises:
            SluiceError: that failed; it is in `failure` too, and whoever waits for groups is told.
        """
        try:
            self._begin(timeout_s)
        except (SluiceError, RayError) as error:
            self.failure = error if isinstance(error, SluiceError) else RunError(reason_of(error))
            self.queue.fail(str(self.failure))
            raise self.failure from error

    def _begin(self, timeout_s: float) -> None:
        starting = {rollout.started: rollout.name for rollout in self.rollouts}
        _, late = ray.wait(list(starting), num_returns=len(starting), timeout=timeout_s)
        if late:
            raise ClusterError(
                f"the engines of {', '.join(starting[ref] for ref in late)} were not ready within "
                f"{timeout_s:.0f} s; raise cluster.start_timeout_s, or look at the actors' logs in the Ray "
                "dashboard"
            )
        self._follow_catalogue()  # what was pushed before a run was resumed is there from its first prompt on
        for rollout in self.rollouts:
            get_result(rollout.started, f"the engine of {rollout.name}", _ANSWER_S)
            rollout.begin()
        self._supervisor = threading.Thread(target=self._supervise, name="fleet-supervisor", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """Let the rollouts finish their step, then free every actor and the reservation."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join(timeout=30)
        ending: list[Any] = [rollout.handle.stop.remote() for rollout in self.rollouts]
        ending += [rollout.running for rollout in self.rollouts if rollout.running is not None]
        ray.wait(ending, num_returns=len(ending), timeout=_STOP_S)
        for handle in (*(rollout.handle for rollout in self.rollouts), *self.rankers, *self._others):
            ray.kill(handle)
        self.reservation.release()

    def stats(self) -> dict[str, dict[str, float | str]]:
        """What each rollout actor counted, and its node; one that does not answer is left out."""
        handles = {rollout.name: rollout.handle for rollout in self.rollouts}
        counts = {name: asdict(stats) for name, stats in self._ask("stats", handles).items()}
        for own_counts in counts.values():
            del own_counts["time"]  # `times` has it
        nodes = self._ask("node", {name: handles[name] for name in counts})
        return {name: {**counts[name], "node": node} for name, node in nodes.items()}

    def times(self) -> dict[str, dict[str, float]]:
        """Where the time of each rollout actor and ranker went so far, by activity; who does not answer is
        left out.
        """
        handles = {f"ranker-{number}": handle for number, handle in enumerate(self.rankers)}
        handles |= {rollout.name: rollout.handle for rollout in self.rollouts}
        return {name: stats.time for name, stats in sorted(self._ask("stats", handles).items())}

    def _ask(self, method: str, handles: dict[str, Any]) -> dict[str, Any]:
        """The actors' answers by name. What a dead actor counted is lost, which is no reason to lose the
        run.
        """
        calls: dict[str, RayCall[Any]] = {
            name: RayCall(getattr(handle, method).remote(), f"{name}.{method}", _STATS_S)
            for name, handle in handles.items()
        }
        answers = {}
        for name, call in calls.items():
            try:
                answers[name] = call.result()
            except RunError as error:
                logger.warning("the summary goes without %s: %s", name, error)
        return answers

    def _supervise(self) -> None:
        try:
            while not self._stopping.is_set() and self.failure is None:
                self._follow_catalogue()
                running = {
                    rollout.running: rollout for rollout in self.rollouts if rollout.running is not None
                }
                ended, _ = ray.wait(list(running), timeout=_POLL_S)
                for ref in ended:
                    if not self._stopping.is_set():
                        self._replace(running[ref])
        except RunError as error:  # the queue is gone: the learner's next pull says so too
            self.failure = error

    def _follow_catalogue(self) -> None:
        """Publish what has been pushed. A change that cannot be read or published stops the changes, not the
        run.
        """
        if self._changes is None:
            return
        try:
            for vocabulary in self._changes.follow():
                self.catalogues.publish(vocabulary)
                retired = len(vocabulary.retired)
                print(
                    f"catalogue: version {vocabulary.version} with {vocabulary.trie.items} items, {retired} "
                    f"retired",
                    flush=True,
                )
        except (DataError, RunError) as error:
            logger.warning("the catalogue stays as it is: %s", error)
            self._changes = None

    def _replace(self, rollout: _Rollout) -> None:
        assert rollout.running is not None
        try:
            ray.get(rollout.running)
            reason = "its run ended though nobody stopped it"
        except ray.exceptions.RayError as error:
            reason = reason_of(error)
            broken = getattr(error, "cause", None)
            if isinstance(broken, RankerError):  # another actor would ask the same ranker
                self.failure = broken
                self.queue.fail(str(broken))
                return
        decision = decide_restart(
            f"rollout actor {rollout.name}",
            restarts=rollout.restarts,
            bound=self.max_restarts,
            setting="cluster.max_actor_restarts",
            reason=reason,
        )
        logger.warning("%s", decision.message)
        self.queue.note_error(rollout.name, decision.message)
        if not decision.restart:
            self.failure = RunError(decision.message)
            self.queue.fail(decision.message)
            return
        self.queue.revoke(rollout.name, reason)
        rollout.restarts = decision.restarts
        self._metrics.add("sluice_restarts_total", component=rollout.name)
        rollout.begin_again()


def reserve_places(config: RunConfig) -> placement.Reservation:
    """Places for the rollout actors and rankers, once it is sure that the learner's workers fit beside them.

    Raises:
        ClusterError: the cluster did not grant them within `cluster.placement_timeout_s`.
    """
    return placement.reserve_placement(plan_run(config), config.cluster.placement_timeout_s)


def start_fleet(
    config: RunConfig, paths: RunPaths, layout: TokenLayout, reservation: placement.Reservation
) -> Fleet:
    """Create all actors; they load in parallel and nothing waits for them here."""
    # A rollout actor has a few calls at the queue and one at each board, most of them waiting.
    light: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 10_000,
    }
    order = fixed_order(config)
    queue_actor: Any = (
        ray.remote(QueueActor)
        .options(**light)
        .remote(
            functools.partial(
                open_prompts, paths.data, config.learner.prompts_per_user, config.prompts_leave
            ),
            seed=config.seed,
            settings=config.queue,
            publish_every=config.weights.publish_every,
            lease_deadline_s=config.learner.rollout_timeout_s / 2,
            order=order,
        )
    )
    board: Any = (
        ray.remote(WeightBoard).options(**light).remote()
        if order is None
        else ray.remote(KeptWeightBoard).options(**light).remote(order.lag + 1)
    )
    catalogue_board: Any = ray.remote(CatalogueBoard).options(**light).remote()
    # One copy of the catalogue's arrays per node, which the actors there use in place.
    dataset = Dataset.open(paths.data)
    vocabulary = Vocabulary.of(dataset.codes, layout)
    stored = ray.put(vocabulary)
    rankers = _start_rankers(config, paths, reservation)
    queue = QueueClient(
        queue_actor, wait_s=config.learner.rollout_timeout_s, start_s=config.cluster.start_timeout_s
    )
    ranker = RankerClient(
        tuple(rankers), timeout_s=config.ranker_pool.timeout_s, attempts=config.ranker_pool.attempts
    )
    clients = RolloutClients(
        queue=queue,
        ranker=ranker,
        weights=WeightSource(board),
        catalogues=None if config.deterministic else CatalogueSource(catalogue_board),
    )
    return Fleet(
        queue=queue,
        publisher=WeightPublisher(board, transport=config.weights.transport),
        catalogues=CataloguePublisher(catalogue_board, vocabulary),
        catalogue_source=CatalogueSource(catalogue_board),
        rollouts=_start_rollouts(config, paths, reservation, stored, clients),
        reservation=reservation,
        max_restarts=config.cluster.max_actor_restarts,
        rankers=rankers,
        _others=[board, catalogue_board, queue_actor],
        open_vocabulary=functools.partial(_get_vocabulary, stored),
        _changes=None
        if config.deterministic
        else ChangingCatalogue(lambda: dataset.item_ids, vocabulary, paths.catalogue),
    )


def fixed_order(config: RunConfig) -> FixedOrder | None:
    """The order of a deterministic run; None: groups are trained on as they come."""
    if not config.deterministic:
        return None
    return FixedOrder(
        step_groups=config.learner.prompts_per_step,
        batch=config.rollout.prompts_per_lease,
        publish_every=config.weights.publish_every,
        lag=config.queue.max_staleness,
    )


def _get_vocabulary(stored: "ray.ObjectRef[Vocabulary]") -> Vocabulary:
    return ray.get(stored)


def _start_rankers(config: RunConfig, paths: RunPaths, reservation: placement.Reservation) -> list[Any]:
    open_dataset = functools.partial(Dataset.open, paths.data)
    return [
        ray.remote(RankerActor)
        .options(
            **reservation.options("ranker", index),
            max_restarts=config.cluster.max_actor_restarts,
            max_task_retries=-1,
            max_concurrency=1000,
        )
        .remote(
            functools.partial(open_ranker, config.ranker, paths.ranker, open_dataset),
            name=f"ranker-{index}",
            max_batch=config.ranker_pool.max_batch,
            max_wait_ms=config.ranker_pool.max_wait_ms,
            meter_factory=meter_factory(config, paths, open_dataset),
            alone=config.deterministic,
        )
        for index in range(config.ranker_pool.actors)
    ]


def _start_rollouts(
    config: RunConfig,
    paths: RunPaths,
    reservation: placement.Reservation,
    vocabulary: "ray.ObjectRef[Vocabulary]",
    clients: RolloutClients,
) -> list[_Rollout]:
    rollouts = []
    for index in range(config.rollout.actors):
        name = f"rollout-{index}"
        handle: Any = (
            ray.remote(**LAUNCH)(RolloutActor)
            .options(
                **reservation.options("rollout", index),
                max_restarts=config.cluster.max_actor_restarts,
                runtime_env={"env_vars": engine_variables(config)},
            )
            .remote(
                name=name,
                # Who serves a prompt of a fixed order must not matter.
                engine_factory=functools.partial(
                    open_engine, config, paths, seed=config.seed + (0 if config.deterministic else index)
                ),
                dataset_factory=functools.partial(Dataset.open, paths.data),
                settings=config.rollout,
                seed=config.seed,
                gaps=Gaps(most=config.learner.item_dropout, seed=config.seed),
                fixed=config.deterministic,
            )
        )
        started = handle.start.remote(vocabulary)
        rollouts.append(_Rollout(name, handle, vocabulary=vocabulary, clients=clients, started=started))
    return rollouts
