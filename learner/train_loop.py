"""The Ray Train worker loop: batch -> gated update -> acknowledge -> publish -> validate -> checkpoint.

    consumes   batches of a `BatchSource` (rollout queue or logs), numbered by optimizer step
    produces   packed weights on the weight board every `publish_every` steps; metrics; checkpoints; the best policy
    waits for  the source to fill a step (bounded by `learner.wait_s`), the other workers (collectives)

All workers do the same number of steps. Rank 0 alone writes files, publishes weights and talks to the queue about
checkpoints; every rank validates its share of the users.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from catalog.dataset import Dataset, Examples
from catalog.vocabulary import Vocabulary
from learner.checkpoint import RunState, read_rank, read_state, write_checkpoint, write_rank
from learner.dropout import dropout
from learner.evaluate import UserResults, evaluate, subset
from learner.metrics_log import MetricsLog
from learner.objectives.build import build_objective
from learner.policy import Policy, load_policy, save_policy
from learner.settings import EvaluationSettings, LearnerSettings, Objective
from learner.sources import BatchSource, Catalogues, LoggedSource, QueueSource, RolloutQueue
from learner.step import LearnerStep
from learner.weights import PackedWeights, pack


class Publisher(Protocol):
    """What the loop needs of the weight board's client (`actors.weight_board.WeightPublisher`)."""

    def publish(self, weights: PackedWeights) -> None:
        """Make the weights available to the rollout actors."""

    def latest_version(self) -> int:
        """Version on the board, 0 when nothing was published."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Everything a worker is told; travels pickled."""

    metrics_path: str
    data_directory: str
    policy_directory: str  # the starting policy, which is also the frozen reference
    best_directory: str
    last_directory: str
    seed: int
    objective: Objective
    learner: LearnerSettings
    evaluation: EvaluationSettings
    publish_every: int
    threads: int  # CPU threads of a worker
    constrained: bool
    temperature: float
    beams: bool
    queue: RolloutQueue | None  # None: learn from the logs alone
    publisher: Publisher | None
    catalogues: Catalogues | None = None  # None: the catalogue never changes


def prompts_of(dataset: Dataset, recent: int | None) -> Examples:
    """The training examples that post-training draws prompts from: all, or each user's last `recent`."""
    examples = dataset.examples("train")
    if recent is None:
        return examples
    last = dataset.training_lengths[examples.users] - 1
    keep = examples.positions > last - recent
    return Examples(users=examples.users[keep], positions=examples.positions[keep])


def open_prompts(data_directory: str | Path, recent: int | None) -> Examples:
    """`prompts_of` a prepared directory, for an actor that opens it itself."""
    return prompts_of(Dataset.open(data_directory), recent)


def train_loop(options: dict[str, Any]) -> None:
    """What `TorchTrainer` runs in each worker; `options["config"]` is a `LoopConfig`."""
    config: LoopConfig = options["config"]
    torch.set_num_threads(config.threads)
    worker = _Worker(config)
    worker.start()
    with dropout(worker.policy.model, residual=config.learner.dropout, embedding=config.learner.dropout):
        for step in range(worker.step, config.learner.steps):
            worker.train_step(step)
            if (step + 1) % config.learner.evaluate_every == 0 or step + 1 == config.learner.steps:
                worker.validate_and_checkpoint(step + 1)
    worker.finish()


class _Worker:
    """One rank's state."""

    def __init__(self, config: LoopConfig) -> None:
        context = ray.train.get_context()
        self.config = config
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.dataset = Dataset.open(config.data_directory)
        checkpoint = ray.train.get_checkpoint()
        self._checkpoint = Path(checkpoint.to_directory()) if checkpoint else None
        start = Path(config.policy_directory)
        self.policy: Policy = load_policy(self._checkpoint / "policy" if self._checkpoint else start)
        self.vocabulary = Vocabulary.of(self.dataset.codes, self.policy.layout)
        device = ray.train.torch.get_device()
        self.policy.model.to(device)
        torch.manual_seed(config.seed + self.rank)
        objective = build_objective(config.objective)
        self.learner = LearnerStep(
            self.policy.model,
            objective=objective,
            settings=config.learner,
            reference=load_policy(start).model.to(device) if objective.needs_reference else None,
            wrap=ray.train.torch.prepare_model if self.world > 1 else None,
        )
        self.source = self._source()
        self.examples = subset(self.dataset.examples("valid"), config.evaluation.max_users)
        self.step, self.version, self.best = 0, 0, (-1.0, -1.0)
        self.log: MetricsLog | None = None

    def _source(self) -> BatchSource:
        config = self.config
        share = config.learner.prompts_per_step // self.world
        if config.queue is not None:
            return QueueSource(
                config.queue,
                self.vocabulary,
                rank=self.rank,
                world=self.world,
                share=share,
                constrained=config.constrained,
                temperature=config.temperature,
                beams=config.beams,
                catalogues=config.catalogues,
            )
        prompts = prompts_of(self.dataset, config.learner.recent_positions)
        return LoggedSource(
            self.dataset, prompts, self.vocabulary, seed=config.seed, rank=self.rank, world=self.world, share=share
        )

    def start(self) -> None:
        """Begin, or go on from the checkpoint that Ray Train hands over."""
        state = read_state(self._checkpoint) if self._checkpoint else None
        if state is not None:
            self.step, self.version, self.best = state.step, state.version, state.best
            self.learner.load_state_dict(read_rank(self._checkpoint, self.rank))
        if self.rank == 0:
            self.log = MetricsLog(Path(self.config.metrics_path), state.metrics_bytes if state else 0)
            self.log.write("start", self.step, {"node": ray.get_runtime_context().get_node_id(), "workers": self.world})
            self.source.restore(state.source if state else None)
        if self.config.publisher is not None:
            # Weights that were rolled back to a checkpoint are new to the rollout actors: they get a new version.
            published = self._agree(self.config.publisher.latest_version() if self.rank == 0 else 0)
            if published > 0 or state is not None:
                self.version = max(published, self.version)
                self._publish()
        if state is None:
            self._record_validation(0)
        self._barrier()

    def train_step(self, step: int) -> None:
        """One optimizer step on this rank's share."""
        batch, figures = self.source.next(step, self.version)
        values = {**self.learner.update(batch), **self._mean(figures)}
        self.source.acknowledge(step)
        if self.config.publisher is not None and (step + 1) % self.config.publish_every == 0:
            self._publish()
        if self.log is not None:
            self.log.write("step", step + 1, {**values, "learner_version": self.version})

    def validate_and_checkpoint(self, step: int) -> None:
        """Validate, keep the best policy, and hand a checkpoint to Ray Train."""
        summary = self._record_validation(step)
        score = (summary["hr@10"], summary["ndcg@10"])
        if score > self.best:
            self.best = score
            if self.rank == 0:
                _replace_policy(self.policy, Path(self.config.best_directory))
        self._barrier()
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            write_rank(directory, self.rank, self.learner.state_dict())
            if self.rank == 0:
                state = RunState(
                    step=step,
                    version=self.version,
                    best=self.best,
                    source=self.source.snapshot(),
                    metrics_bytes=self.log.size,
                )
                write_checkpoint(directory, state, self.policy)
            ray.train.report(summary | {"step": step}, checkpoint=ray.train.Checkpoint.from_directory(directory))

    def finish(self) -> None:
        """Leave the last policy and close the log."""
        if self.rank == 0:
            _replace_policy(self.policy, Path(self.config.last_directory))
            self.log.close()
        self._barrier()

    def _record_validation(self, step: int) -> dict[str, float]:
        mine = Examples(
            users=self.examples.users[self.rank :: self.world],
            positions=self.examples.positions[self.rank :: self.world],
        )
        part = evaluate(self.policy.model, self.vocabulary, self.dataset, mine, self.config.evaluation)
        parts = [part]
        if self.world > 1:
            parts = [None] * self.world
            dist.all_gather_object(parts, part)
        summary = UserResults.concatenate(parts).summary(self.dataset.items)
        if self.log is not None:
            self.log.write("eval", step, {"split": "valid", **summary})
        return summary

    def _publish(self) -> None:
        self.version += 1
        if self.rank == 0:
            self.config.publisher.publish(pack(self.policy.model.named_parameters(), self.version))

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        if self.world == 1:
            return values
        tensor = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        dist.all_reduce(tensor)
        return dict(zip(sorted(values), (tensor / self.world).tolist(), strict=True))

    def _agree(self, value: int) -> int:
        if self.world == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def _barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def _replace_policy(policy: Policy, directory: Path) -> None:
    """Put the policy at `directory` whether or not one is there; a reader sees the old one or the new one."""
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_policy(policy, fresh)
    old = directory.with_name(directory.name + ".old")
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
