"""One arm of a study: a post-training in one process, from a start and a ranker that other arms share.

The step, the objectives, the prompts and the validation are those of a run. What a run has for many machines
(Ray Train, the queue, the boards) is left out, so an arm takes a minute and gives equal numbers each time.
Not for it: several workers, sharding, a catalogue that changes, a resume in the middle.
"""

import resource
import time
from pathlib import Path
from typing import Any

import torch

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.gaps import Gaps
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.sources import BatchSource, LoggedSource, QueueSource, prompts_of
from sluice.learner.evaluation.evaluate import sample_examples
from sluice.learner.evaluation.exposure import choosing_score
from sluice.learner.policy.dropout import dropout_enabled
from sluice.learner.policy.packed_weights import pack_one_by_one
from sluice.learner.policy.policy import Policy, move_model, save_policy
from sluice.learner.ranker.load import load_ranker
from sluice.learner.training.metrics_log import MetricsLog
from sluice.learner.training.objective import build_objective
from sluice.learner.training.step import LearnerStep
from sluice.learner.training.train_loop import starting_policy
from sluice.learner.training.validation import validate_policy
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress
from sluice.services.run.engines import engine_arguments
from sluice.services.run.trust import meter_factory
from sluice.services.study.rollouts import LocalRollouts, Meter

BEST, LAST, METRICS = "best", "last", "metrics.jsonl"


def train_arm(
    config: RunConfig, paths: RunPaths, directory: Path, progress: Progress, meter: Meter | None = None
) -> dict[str, Any]:
    """Post-train the start of `paths`; leaves `best/`, `last/` and `metrics.jsonl` in `directory`.

    `meter` measures trust in the place of the ranker's own halves.

    Returns:
        What it cost (`seconds` of training without validation, `peak_mib`, `groups` of rollouts and their
        generated `tokens`, `prompts`), `steps`, and `gate_rate`, the mean over the steps of a gate.
    """
    return _Arm(config, paths, directory, meter).train(progress)


class _Arm:
    def __init__(self, config: RunConfig, paths: RunPaths, directory: Path, meter: Meter | None) -> None:
        torch.set_num_threads(max(1, int(config.cluster.learner_cpus)))
        self.config, self.directory = config, directory
        self.dataset = Dataset.open(paths.data)
        self.policy = starting_policy(paths.policy, config.learner, config.seed)
        move_model(self.policy.model, "cuda" if torch.cuda.is_available() else "cpu")
        self.vocabulary = Vocabulary.of(self.dataset.codes, self.policy.layout)
        torch.manual_seed(config.seed)
        objective = build_objective(config.objective)
        self.learner = LearnerStep(self.policy.model, objective=objective, settings=config.learner)
        self.engine = self._engine(paths) if objective.needs_groups else None
        self.source = self._source(paths, meter)
        self.examples = sample_examples(self.dataset.examples("valid"), config.evaluation.max_users)
        self.log = MetricsLog(directory / METRICS, 0)
        self.best, self.since_best, self.seconds = (-1.0, -1.0), 0, 0.0

    def train(self, progress: Progress) -> dict[str, Any]:
        """See `train_arm`."""
        settings, rates, step = self.config.learner, [], 0
        self._validate(0)
        with dropout_enabled(self.policy.model, residual=settings.dropout, embedding=settings.dropout):
            for step in range(1, settings.steps + 1):
                figures = self._step(step)
                rates.append(figures.get("gate_rate"))
                if step % settings.evaluate_every == 0 or step == settings.steps:
                    self._validate(step)
                    progress(step, settings.steps, {"nll": figures["nll"]})
                    if settings.patience is not None and self.since_best >= settings.patience:
                        break
        self._save(LAST)
        self.log.close()
        if self.engine is not None:
            self.engine.close()
        known = [rate for rate in rates if rate is not None]
        prompts = step * settings.prompts_per_step
        return {
            "steps": step,
            "prompts": prompts,
            "groups": 0 if self.engine is None else prompts,
            "tokens": 0 if self.engine is None else prompts * self._tokens_of_group,
            "seconds": round(self.seconds, 2),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "gate_rate": sum(known) / len(known) if known else None,
        }

    @property
    def _tokens_of_group(self) -> int:
        return self.config.rollout.decode.candidates * self.vocabulary.layout.levels

    def _step(self, step: int) -> dict[str, float]:
        began_s = time.monotonic()
        if self.engine is not None:
            weights = self.learner.plain_weights()
            self.engine.load_weights(pack_one_by_one(weights.shapes(), weights.tensors(), step))
        batch, figures = self.source.next(step - 1, step)
        values = self.learner.update(batch) | figures
        self.source.acknowledge(step - 1)
        self.seconds += time.monotonic() - began_s
        self.log.write("step", step, values)
        return values

    def _validate(self, step: int) -> None:
        with self.learner.averaged():
            results = validate_policy(
                self.learner, self.vocabulary, self.dataset, self.examples, self.config.evaluation
            )
        summary = results.summary(self.dataset, self.config.evaluation)
        self.log.write("eval", step, {"split": "valid", **summary})
        score = choosing_score(summary, self.config.evaluation)
        self.since_best = 0 if score > self.best else self.since_best + 1
        if score > self.best:
            self.best = score
            self._save(BEST)

    def _save(self, name: str) -> None:
        with self.learner.averaged():
            adapted = self.config.learner.lora is not None
            plain: Policy = self.learner.plain_weights().policy(like=self.policy) if adapted else self.policy
            save_policy(plain, self.directory / name)

    def _engine(self, paths: RunPaths) -> TreeEngine:
        given = self.config.rollout.engine
        return TreeEngine(
            **engine_arguments(self.config, paths, self.vocabulary, self.config.seed),
            # Runs with vLLM draw from the same distribution; an arm of a minute has no time for its start.
            engine=given if isinstance(given, TreeEngineSettings) else TreeEngineSettings(),
        )

    def _source(self, paths: RunPaths, meter: Meter | None) -> BatchSource:
        config, learner = self.config, self.config.learner
        prompts = prompts_of(self.dataset, learner.prompts_per_user)
        gaps = Gaps(most=learner.item_dropout, seed=config.seed)
        if self.engine is None:
            return LoggedSource(
                self.dataset,
                prompts,
                self.vocabulary,
                seed=config.seed,
                rank=0,
                world=1,
                share=learner.prompts_per_step,
                gaps=gaps,
            )
        ranker = load_ranker(config.ranker, paths.ranker, self.dataset)
        measures = meter_factory(config, paths, lambda: self.dataset)
        if measures is not None and meter is None:
            meter = measures(ranker)
        rollouts = LocalRollouts(
            dataset=self.dataset,
            prompts=prompts,
            vocabulary=self.vocabulary,
            engine=self.engine,
            ranker=ranker,
            settings=config.rollout,
            seed=config.seed,
            gaps=gaps,
            meter=meter,
        )
        return QueueSource(
            rollouts,
            self.dataset,
            self.vocabulary,
            rank=0,
            world=1,
            share=learner.prompts_per_step,
            decoding=config.decoding,
        )


def needs_ranker(config: RunConfig) -> bool:
    """Whether the objective learns from rollouts, which a ranker scores."""
    return build_objective(config.objective).needs_groups
