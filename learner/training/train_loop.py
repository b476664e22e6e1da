"""The Ray Train worker loop: batch -> gated update -> acknowledge -> publish -> validate -> checkpoint.

    consumes   batches of a `BatchSource` (rollout queue or logs), numbered by optimizer step
    produces   packed weights on the weight board every `publish_every` steps; metrics; checkpoints; the best
               policy
    waits for  the source to fill a step (`learner.rollout_timeout_s`), the other workers (collectives)

All workers do the same number of steps. Rank 0 alone writes files, publishes weights and talks to the queue
about checkpoints; every rank validates its share of the users.
"""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.gaps import Gaps
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.activity_clock import ActivityClock, idle_seconds
from sluice.learner.batches.prefetch import Prefetched
from sluice.learner.batches.sources import (
    BatchSource,
    LoggedSource,
    QueueSource,
    prompts_of,
)
from sluice.learner.evaluation.evaluate import sample_examples
from sluice.learner.evaluation.exposure import choosing_score
from sluice.learner.policy.dropout import dropout_enabled
from sluice.learner.policy.packed_weights import pack_one_by_one
from sluice.learner.policy.policy import Policy, load_policy, move_model, save_policy
from sluice.learner.policy.sharding import shard_scorer
from sluice.learner.settings import LearnerSettings
from sluice.learner.training.checkpoint import (
    RunState,
    add_to_best,
    read_rank,
    read_state,
    replace_best,
    seal_part,
    settle_best,
    write_checkpoint,
    write_rank,
)
from sluice.learner.training.journal_file import JournalFile
from sluice.learner.training.kept_weights import KeptWeights
from sluice.learner.training.loop_config import LoopConfig, version_after
from sluice.learner.training.metrics_log import MetricsLog
from sluice.learner.training.objective import build_objective
from sluice.learner.training.recovery import Choice, tell_choice
from sluice.learner.training.step import LearnerStep
from sluice.learner.training.validation import validate_policy


def _quieten_ray_train() -> None:
    """It would print every checkpoint with its metrics. Its loggers are named after their modules, or their
    files.
    """
    package = str(Path(ray.train.__file__).parent)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("ray.train", package)):
            logging.getLogger(name).setLevel(logging.WARNING)


def train_loop(options: dict[str, Any]) -> None:
    """What `TorchTrainer` runs in each worker; `options["config"]` is a `LoopConfig`."""
    config: LoopConfig = options["config"]
    _quieten_ray_train()
    torch.set_num_threads(config.threads)
    worker = _Worker(config)
    worker.start()
    with dropout_enabled(
        worker.policy.model, residual=config.learner.dropout, embedding=config.learner.dropout
    ):
        for step in range(worker.step, config.learner.steps):
            if worker.out_of_patience:  # a run that has ended so is not trained on when it is resumed
                break
            worker.train_step(step)
            if (step + 1) % config.learner.evaluate_every == 0 or step + 1 == config.learner.steps:
                worker.validate_and_checkpoint(step + 1)
    worker.finish()


def starting_policy(directory: str | Path, settings: LearnerSettings, seed: int) -> Policy:
    """The policy that a run starts from, in float32 and with the adapters that `settings` ask for."""
    policy = load_policy(directory)
    policy.model.float()
    if settings.lora is not None:
        from sluice.learner.policy.lora import add_adapters

        add_adapters(policy.model, settings.lora, policy.layout, seed)
    return policy


class _Worker:
    """One rank's state."""

    def __init__(self, config: LoopConfig) -> None:
        context = ray.train.get_context()
        self.config = config
        self.time = ActivityClock("other")
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.dataset = Dataset.open(config.data_directory)
        self.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        places = Path(config.checkpoints), Path(config.best_checkpoint)
        self.choice: Choice = self._agree(tell_choice(*places) if self.rank == 0 else None)
        # A resumed run starts here too: the reference and what LoRA freezes are the starting policy's.
        self.policy = starting_policy(config.policy_directory, config.learner, config.seed)
        self.vocabulary = (config.open_vocabulary or self._made_vocabulary)()
        torch.manual_seed(config.seed + self.rank)
        self.learner = self._learner()
        self.source = self._source()
        self.examples = sample_examples(self.dataset.examples("valid"), config.evaluation.max_users)
        self.step, self.version, self.best, self.since_best = 0, 0, (-1.0, -1.0), 0
        self.kept = KeptWeights(config.kept_versions)
        self.log: MetricsLog | None = None
        self.journal: JournalFile | None = None  # of rank 0, in a run with rollouts

    def _made_vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.dataset.codes, self.policy.layout)

    def _learner(self) -> LearnerStep:
        if self.config.learner.sharding == "fsdp":
            # Moves each layer to the device when it cuts it up, so that the device never holds all of them.
            wrap: Callable[[Any], nn.Module] | None = partial(shard_scorer, device=self.device)
        else:
            move_model(self.policy.model, self.device)
            wrap = ray.train.torch.prepare_model if self.world > 1 else None
        objective = build_objective(self.config.objective)
        return LearnerStep(self.policy.model, objective=objective, settings=self.config.learner, wrap=wrap)

    def _source(self) -> BatchSource:
        config = self.config
        share = config.learner.prompts_per_step // self.world
        if config.queue is not None:
            source: BatchSource = QueueSource(
                config.queue,
                self.dataset,
                self.vocabulary,
                rank=self.rank,
                world=self.world,
                share=share,
                decoding=config.decoding,
                catalogues=config.catalogues,
            )
        else:
            prompts = prompts_of(self.dataset, config.learner.prompts_per_user)
            source = LoggedSource(
                self.dataset,
                prompts,
                self.vocabulary,
                seed=config.seed,
                rank=self.rank,
                world=self.world,
                share=share,
                gaps=Gaps(most=config.learner.item_dropout, seed=config.seed),
            )
        return Prefetched(source, steps=config.learner.steps, next_version=self._version_after)

    def start(self) -> None:
        """Begin, or go on from the checkpoint that Ray Train hands over."""
        state = None if self.choice.directory is None else self._load(self.choice.directory)
        if self.rank == 0:
            settle_best(Path(self.config.best_checkpoint), Path(self.config.best_directory))
            self.log = MetricsLog(
                Path(self.config.metrics_path), state.metrics_bytes if state else 0, self.step
            )
            if self.config.queue is not None:
                kept = state.journal_bytes if state else 0
                self.journal = JournalFile(Path(self.config.journal_path), kept)
            self.log.write(
                "start", self.step, {"node": ray.get_runtime_context().get_node_id(), "workers": self.world}
            )
            self.source.restore(state.source if state else None)
        if self.config.publisher is not None:
            self._publish_first(state)
        if state is None:
            self.validate_and_checkpoint(0)  # the start itself may be the best
        self._barrier()

    def _publish_first(self, state: RunState | None) -> None:
        assert self.config.publisher is not None
        if self.config.kept_versions == 0:
            # Weights that were rolled back to a checkpoint are new to the rollout actors: they get a new
            # version.
            published = self._agree(self.config.publisher.latest_version() if self.rank == 0 else 0)
            if published > 0 or state is not None:
                self._publish(max(published, self.version) + 1)
        elif state is None:
            self._publish(0)
        elif self.rank == 0:
            for weights in self.kept.all():
                self.config.publisher.publish(weights)

    @property
    def out_of_patience(self) -> bool:
        """Whether too many validations have passed without a better one."""
        patience = self.config.learner.patience
        return patience is not None and self.since_best >= patience

    def _load(self, checkpoint: Path) -> RunState:
        state = read_state(checkpoint)
        self.step, self.version, self.best = state.step, state.version, max(state.best, self.choice.best)
        self.since_best = state.since_best
        if self.learner.in_policy_directory:
            saved = load_policy(checkpoint / "policy").model
            self.policy.model.load_state_dict(saved.state_dict())
        self.learner.load_state_dict(read_rank(checkpoint, self.rank))
        if self.rank == 0:
            self.kept.load(checkpoint)
        return state

    def train_step(self, step: int) -> None:
        """One optimizer step on this rank's share."""
        before = self.time.seconds()
        with self.time.activity("wait_batch"):
            batch, figures = self.source.next(step, self.version)
        with self.time.activity("update"):
            values = self.learner.update(batch)
        with self.time.activity("acknowledge"):
            self.source.acknowledge(step)
        figures = self._mean(figures)
        if self._version_after(step, self.version) > self.version:
            self._publish(self.version + 1)
        now = self.time.seconds()
        if self.log is not None:
            figures |= {
                "step_s": sum(now.values()) - sum(before.values()),
                "idle_s": idle_seconds(now) - idle_seconds(before),
            }
            self.log.write("step", step + 1, {**values, **figures, "learner_version": self.version})
        if self.config.meter is not None:
            self.config.meter.set_times(f"learner-{self.rank}", now)

    def validate_and_checkpoint(self, step: int) -> None:
        """Validate, and hand a checkpoint to Ray Train, which keeps the last ones; the best one is kept
        beside them.
        """
        summary = self._record_validation(step)
        with self.time.activity("checkpoint"):
            self._checkpoint_after(summary, step)

    def _checkpoint_after(self, summary: dict[str, float], step: int) -> None:
        score = choosing_score(summary, self.config.evaluation)
        is_best = score > self.best
        self.since_best = 0 if is_best else self.since_best + 1
        self.best = max(score, self.best)
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            self._write_part(directory, step)
            if is_best:
                self._keep_best(directory)
            ray.train.report(
                summary | {"step": step}, checkpoint=ray.train.Checkpoint.from_directory(directory)
            )

    def finish(self) -> None:
        """Leave the last policy and close the log."""
        policy = self._plain_policy()
        if policy is not None and self.log is not None:
            save_policy(policy, self.config.last_directory)
            self.log.write("time", self.learner.step, {"rank": self.rank, "seconds": self.time.seconds()})
            self.log.close()
        self._barrier()

    def _write_part(self, directory: Path, step: int) -> None:
        """This rank's files of a checkpoint."""
        write_rank(directory, self.rank, self.learner.state_dict())
        policy = self._plain_policy()
        if policy is not None and self.log is not None:
            source = self.source.snapshot()
            events = source.pop("journal", [])
            state = RunState(
                step=step,
                version=self.version,
                best=self.best,
                since_best=self.since_best,
                source=source,
                metrics_bytes=self.log.size,
                journal_bytes=0 if self.journal is None else self.journal.append(events),
            )
            self.kept.save(directory)
            write_checkpoint(directory, state, policy)
        seal_part(directory, self.rank, self.world)

    def _keep_best(self, part: Path) -> None:
        best = Path(self.config.best_checkpoint)
        add_to_best(part, best)
        self._barrier()
        if self.rank == 0:
            replace_best(best, Path(self.config.best_directory))
        self._barrier()

    def _record_validation(self, step: int) -> dict[str, float]:
        with self.time.activity("validate"), self.learner.averaged():
            results = validate_policy(
                self.learner, self.vocabulary, self.dataset, self.examples, self.config.evaluation
            )
        summary = results.summary(self.dataset, self.config.evaluation)
        if self.log is not None:
            self.log.write("eval", step, {"split": "valid", **summary})
        return summary

    def _version_after(self, step: int, version: int) -> int:
        """The learner's weight version once `step` is done."""
        return (
            version
            if self.config.publisher is None
            else version_after(step, version, self.config.publish_every)
        )

    def _publish(self, version: int) -> None:
        with self.time.activity("publish"):
            self.version = version
            weights = self.learner.plain_weights()
            if self.rank == 0 and self.config.publisher is not None:
                packed = pack_one_by_one(weights.shapes(), weights.tensors(), version)
                self.kept.add(packed)
                self.config.publisher.publish(packed)
            else:
                weights.join_gathering()

    def _plain_policy(self) -> Policy | None:
        """The policy to save, on rank 0. All workers take part."""
        weights = self.learner.plain_weights()
        with self.learner.averaged():
            if self.rank > 0:
                weights.join_gathering()
                return None
            return self.policy if self.learner.in_policy_directory else weights.policy(like=self.policy)

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        if self.world == 1:
            return values
        tensor = torch.tensor(
            [values[name] for name in sorted(values)], dtype=torch.float64, device=self.device
        )
        with self.time.activity("wait_workers"):
            dist.all_reduce(tensor)
        return dict(zip(sorted(values), (tensor / self.world).tolist(), strict=True))

    def _agree(self, value: Any) -> Any:
        if self.world == 1:
            return value
        shared = [value]
        with self.time.activity("wait_workers"):
            dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def _barrier(self) -> None:
        if self.world > 1:
            with self.time.activity("wait_workers"):
                dist.barrier()
