"""The actors of one run: rollout queue, weight board, ranker pool and rollout pool, started together. A
`Supervisor` keeps them alive.

waits for  placement and engine start, both bounded by the cluster settings
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
from sluice.catalog.errors import ClusterError, DataError, RunError, SluiceError
from sluice.catalog.gaps import Gaps
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster import placement
from sluice.learner.batches.sources import open_prompts
from sluice.learner.ranker.load import open_ranker
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.places import plan_run
from sluice.services.run.engines import engine_variables, open_engine
from sluice.services.run.supervisor import Rollout, Supervisor
from sluice.services.run.trust import meter_factory

logger = logging.getLogger(__name__)

_STOP_S = 30.0  # for an engine step, and for closing the engine
_STATS_S = 10.0
_ANSWER_S = 30.0  # for an answer that is there to arrive


@dataclass
class Fleet:
    """Created by `start_fleet`; `begin` lets the rollouts run, `stop` ends everything."""

    queue: QueueClient
    publisher: WeightPublisher
    catalogues: CataloguePublisher  # a later version published here reaches engines and learner
    catalogue_source: CatalogueSource
    rollouts: list[Rollout]
    reservation: placement.Reservation
    supervisor: Supervisor
    rankers: list[Any] = field(default_factory=list)
    _others: list[Any] = field(default_factory=list)
    open_vocabulary: Callable[[], Vocabulary] | None = None  # the first catalogue, one copy per node
    catalogue_feed: "CatalogueFeed | None" = None

    @property
    def restarts(self) -> int:
        """Actors replaced so far."""
        return self.supervisor.restarts

    @property
    def failure(self) -> SluiceError | None:
        """What ended the rollouts, which the learner is told of too."""
        return self.supervisor.failure

    def begin(self, timeout_s: float) -> None:
        """Wait for the engines (at most `timeout_s`), start all rollouts and watch them from a thread.

        Raises:
            SluiceError: that failed; it is in `failure` too, and whoever waits for groups is told.
        """
        try:
            self._begin(timeout_s)
        except (SluiceError, RayError) as error:
            failure = error if isinstance(error, SluiceError) else RunError(reason_of(error))
            self.supervisor.fail(failure)
            raise failure from error

    def _begin(self, timeout_s: float) -> None:
        starting = {rollout.started: rollout.name for rollout in self.rollouts}
        _, late = ray.wait(list(starting), num_returns=len(starting), timeout=timeout_s)
        if late:
            raise ClusterError(
                f"the engines of {', '.join(starting[ref] for ref in late)} were not ready within "
                f"{timeout_s:.0f} s; raise cluster.start_timeout_s, or look at the actors' logs in the Ray "
                "dashboard"
            )
        if self.catalogue_feed is not None:
            # What was pushed before a run was resumed is there from its first prompt on.
            self.catalogue_feed.follow()
        for rollout in self.rollouts:
            get_result(rollout.started, f"the engine of {rollout.name}", _ANSWER_S)
            rollout.begin()
        self.supervisor.begin()

    def stop(self) -> None:
        """Let the rollouts finish their step, then free every actor and the reservation."""
        self.supervisor.stop()
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


@dataclass
class CatalogueFeed:
    """Publishes the changes of the catalogue that are pushed while the run goes on."""

    catalogues: CataloguePublisher
    changes: ChangingCatalogue | None

    def follow(self) -> None:
        """Publish what has been pushed. A change that cannot be read or published stops the changes, not the
        run.
        """
        if self.changes is None:
            return
        try:
            for vocabulary in self.changes.follow():
                self.catalogues.publish(vocabulary)
                retired = len(vocabulary.retired)
                print(
                    f"catalogue: version {vocabulary.version} with {vocabulary.trie.items} items, {retired} "
                    f"retired",
                    flush=True,
                )
        except (DataError, RunError) as error:
            logger.warning("the catalogue stays as it is: %s", error)
            self.changes = None


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
    light = _light_options()
    queue_actor, board = _start_queue(config, paths, light)
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
    rollouts = _start_rollouts(config, paths, reservation, stored, clients)
    catalogues = CataloguePublisher(catalogue_board, vocabulary)
    changes = ChangingCatalogue(lambda: dataset.item_ids, vocabulary, paths.catalogue)
    feed = CatalogueFeed(catalogues, None if config.deterministic else changes)
    return Fleet(
        queue=queue,
        publisher=WeightPublisher(board, transport=config.weights.transport),
        catalogues=catalogues,
        catalogue_source=CatalogueSource(catalogue_board),
        rollouts=rollouts,
        reservation=reservation,
        supervisor=Supervisor(
            queue,
            rollouts,
            rankers=rankers,
            boards={"the weight board": board, "the catalogue board": catalogue_board},
            cluster=config.cluster,
            settings=config.queue,
            ranker_timeout_s=config.ranker_pool.timeout_s,
            beside=feed.follow,
        ),
        rankers=rankers,
        _others=[board, catalogue_board, queue_actor],
        open_vocabulary=functools.partial(_get_vocabulary, stored),
        catalogue_feed=feed,
    )


def _start_queue(config: RunConfig, paths: RunPaths, light: dict[str, Any]) -> tuple[Any, Any]:
    """The queue and the weight board."""
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
        else ray.remote(KeptWeightBoard).options(**light).remote(order.versions)
    )
    return queue_actor, board


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


def _light_options() -> dict[str, Any]:
    """Of queue and boards. They stand where the driver does, so losing a node of rollouts is not losing
    them.
    """
    node = ray.get_runtime_context().get_node_id()
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        # A rollout actor has a few calls at the queue and one at each board, most of them waiting.
        "max_concurrency": 10_000,
    }


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
) -> list[Rollout]:
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
        rollouts.append(Rollout(name, handle, vocabulary=vocabulary, clients=clients, started=started))
    return rollouts
