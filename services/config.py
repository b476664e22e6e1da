"""The configuration of one run: one YAML file, overridden key by key, checked whole. Imports no torch, no
Ray.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from sluice.actors.settings import (
    CPU_HEAD_SIZES,
    QueueSettings,
    RankerPoolSettings,
    RolloutSettings,
    WeightSettings,
)
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import ConfigError
from sluice.catalog.settings import Settings
from sluice.catalog.simulator.settings import WorldSettings
from sluice.cluster.settings import ClusterSettings
from sluice.learner.gate.settings import GateSettings, TrustSettings
from sluice.learner.objectives.settings.effects import check_effect
from sluice.learner.objectives.settings.objective import AdaGrpoObjective, Objective
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.settings import EvaluationSettings, LearnerSettings, PolicySettings, PretrainSettings
from sluice.services.config_yaml import apply_override, read_settings

SomeSettings = TypeVar("SomeSettings", bound=Settings)
Resume = Literal["last", "best", "auto"] | None  # which checkpoint a run goes on from; auto: the last, if any


class RunConfig(Settings):
    """Everything a run depends on. A relative path is relative to the working directory of the command."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run. It names the run directory, `<output>/<name>-seed<seed>`.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of everything that is drawn.")
    output: str = Field(
        default="runs",
        description="Directory of the run directories. On a cluster: storage that every node sees.",
    )
    data: DataSettings = Field(default=DataSettings(), description="Logs, split and semantic IDs.")
    policy: PolicySettings = Field(default=PolicySettings(), description="The policy's model.")
    pretrain: PretrainSettings = Field(
        default=PretrainSettings(), description="How the starting policy is trained."
    )
    ranker: RankerSettings = Field(default=RankerSettings(), description="What the reward comes from.")
    rollout: RolloutSettings = Field(default=RolloutSettings(), description="The pool of rollout actors.")
    ranker_pool: RankerPoolSettings = Field(
        default=RankerPoolSettings(), description="The pool of ranker actors."
    )
    queue: QueueSettings = Field(default=QueueSettings(), description="The rollout queue.")
    weights: WeightSettings = Field(
        default=WeightSettings(), description="How new weights reach the rollout actors."
    )
    objective: Objective = Field(default=AdaGrpoObjective(), description="What post-training minimises.")
    learner: LearnerSettings = Field(
        default=LearnerSettings(), description="The optimizer loop of post-training."
    )
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(), description="How policies are measured."
    )
    deterministic: bool = Field(
        default=False,
        description="The same weights again, bit by bit, whatever was killed, however often the run was "
        "resumed and with however many rollout and ranker actors, on machines of one kind. Every batch of "
        "leases is generated and scored by itself, by weights that are exactly `queue.max_staleness` "
        "versions old, and trained on in the order of the prompts. See docs/reliability.md.",
    )
    compare: Literal["basic", "full"] = Field(
        default="basic",
        description="What stands beside the post-trained policy. basic: start, control, baselines, ranker. "
        "full: also the same objective without its gate, with a random gate of equal rate, and a policy "
        "pretrained on all logs until the end of the fresh part. Each takes as long as what it is compared "
        "with.",
    )
    cluster: ClusterSettings = Field(
        default=ClusterSettings(), description="Resources, placement and restarts."
    )

    @property
    def directory(self) -> Path:
        """The run directory, `<output>/<name>-seed<seed>`."""
        return Path(self.output) / f"{self.name}-seed{self.seed}"

    @property
    def decoding(self) -> Decoding:
        """How the rollouts of this run are drawn."""
        return self.rollout.decode.decoding(exclude_seen=self.data.exclude_seen)

    @property
    def prompts_leave(self) -> int:
        """Items that every prompt leaves to choose from. A deterministic run draws no other prompts; 0: the
        rollout actors give those up that leave too few.
        """
        return self.decoding.distinct if self.deterministic and self.decoding.constrained else 0

    @property
    def trust(self) -> TrustSettings | None:
        """How trust in the ranker is measured; None: the objective's gate does not ask for it."""
        gate: GateSettings | None = getattr(self.objective, "gate", None)
        return None if gate is None else gate.trust

    @model_validator(mode="after")
    def _queue_holds_a_step(self) -> "RunConfig":
        needed = max(self.learner.prompts_per_step, self.rollout.prompts_per_lease)
        if self.queue.max_groups < needed:
            raise ValueError(
                f"queue.max_groups {self.queue.max_groups} is below {needed}, the larger of "
                f"learner.prompts_per_step and rollout.prompts_per_lease: the learner could never fill a step"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_whole_batches(self) -> "RunConfig":
        step, batch = self.learner.prompts_per_step, self.rollout.prompts_per_lease
        if self.deterministic and step % batch:
            raise ValueError(
                f"deterministic needs steps of whole batches, and learner.prompts_per_step {step} is no "
                f"multiple of rollout.prompts_per_lease {batch}: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _engine_takes_the_heads(self) -> "RunConfig":
        size = self.policy.hidden_size // self.policy.heads
        if self.rollout.engine.type != "vllm" or self.policy.base is not None:
            return self
        if self.rollout.gpus == 0 and size not in CPU_HEAD_SIZES:
            raise ValueError(
                f"policy.hidden_size / policy.heads is {size}; vLLM's attention kernels for the CPU take "
                f"{CPU_HEAD_SIZES}"
            )
        if size < 32 or size % 16:
            raise ValueError(
                f"policy.hidden_size / policy.heads is {size}; vLLM's attention kernels take head sizes of "
                f"32 and more that are multiples of 16"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_a_head(self) -> "RunConfig":
        candidates = self.rollout.decode.candidates
        gate = getattr(self.objective, "gate", None)
        if gate and gate.mode != "random" and gate.tau * candidates < 1:
            raise ValueError(
                f"objective.gate.tau {gate.tau} of {candidates} candidates is less than one place, so "
                "the gate would admit nothing: raise tau or rollout.decode.candidates"
            )
        return self

    @model_validator(mode="after")
    def _ratios_share_a_support(self) -> "RunConfig":
        grpo = getattr(self.objective, "grpo", None)
        if grpo and grpo.uses_engine_probabilities and self.rollout.decode.top_p < 1:
            raise ValueError(
                f"rollout.decode.top_p {self.rollout.decode.top_p} makes the engine normalise over a nucleus "
                f"that the learner does not have, so every ratio is biased: set top_p to 1.0 (temperature "
                "may differ from 1), or objective.grpo.old_policy to batch_start with correction.level none"
            )
        return self

    @model_validator(mode="after")
    def _injected_candidates_have_no_chance(self) -> "RunConfig":
        grpo = getattr(self.objective, "grpo", None)
        if grpo and grpo.ground_truth == "inject" and self.rollout.decode.kind == "stochastic_beam":
            raise ValueError(
                "objective.grpo.ground_truth inject puts an item into the group that nobody drew, and "
                "members of a stochastic_beam group count by their chance of being drawn: set ground_truth "
                "to override or none, or rollout.decode.kind to sample"
            )
        return self

    @property
    def needs_logged_reward(self) -> bool:
        """Whether the objective learns from what the logs say an interaction was worth (`data.reward`)."""
        rewards = getattr(getattr(self.objective, "grpo", self.objective), "rewards", ())
        rewards += getattr(getattr(self.objective, "pairs", None), "rewards", ())
        return self.objective.type in ("reward_weighted_bc", "a_sft", "cql") or any(
            component.type == "logged" for component in rewards
        )

    @model_validator(mode="after")
    def _logged_rewards_are_named(self) -> "RunConfig":
        if self.needs_logged_reward and self.data.reward == "none":
            raise ValueError(
                f"objective {self.objective.type} learns from logged rewards, and data.reward is none: name "
                f"the column of the log that holds them (rating, click or dwell_seconds)"
            )
        return self

    @model_validator(mode="after")
    def _weights_have_propensities(self) -> "RunConfig":
        columns = getattr(self.data.source, "columns", None)
        given, unchanged = self.evaluation, EvaluationSettings()
        if columns is None or columns.propensity is None:
            changes = [
                f"evaluation.{name} is {value}"
                for name in ("propensity_clip", "examination")
                if (value := getattr(given, name)) != getattr(unchanged, name)
            ]
            if given.select_by == "weighted":
                changes.insert(0, "evaluation.select_by is weighted")
            if changes:
                raise ValueError(
                    f"{' and '.join(changes)}, and the log has no propensities: name their column in "
                    "data.source.columns.propensity, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _settings_of_the_objective_have_an_effect(self) -> "RunConfig":
        check_effect(
            self.objective,
            updates_per_batch=self.learner.updates_per_batch,
            kind=self.rollout.decode.kind,
            candidates=self.rollout.decode.candidates,
            constrained=self.decoding.constrained,
        )
        return self

    @model_validator(mode="after")
    def _cql_draws_items(self) -> "RunConfig":
        decode = self.rollout.decode
        if self.objective.type == "cql" and (decode.kind == "beam" or decode.top_p < 1):
            raise ValueError(
                f"objective cql sums over all items by sampling, which rollout.decode.kind {decode.kind} "
                f"with top_p {decode.top_p} does not allow: set kind to sample and top_p to 1.0"
            )
        return self

    @model_validator(mode="after")
    def _intervals_come_from_an_ensemble(self) -> "RunConfig":
        pairs = getattr(self.objective, "pairs", None)
        builtin = self.ranker.use == "builtin"
        if pairs and pairs.type == "ranker_intervals" and builtin and self.ranker.ensemble < 2:
            raise ValueError(
                f"objective.pairs.type ranker_intervals needs the spread over an ensemble, and "
                f"ranker.ensemble is {self.ranker.ensemble}: set it to 2 or more, or choose other pairs"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply overrides such as `learner.lr=1e-5` (values are YAML), and check the result.

    Former names of settings are taken, with a warning (`sluice.services.config_yaml`).

    Raises:
        ConfigError: the file is missing or no YAML mapping, an override is malformed, or a value is wrong;
            the message has one line per error with its field path, the value and the reason.
    """
    return load_settings(RunConfig, path, overrides)


def load_world(path: str | Path, overrides: Sequence[str] = ()) -> WorldSettings:
    """The settings of a simulated world, read and checked as `load_config` does those of a run.

    Raises:
        ConfigError: as `load_config`.
    """
    return load_settings(WorldSettings, path, overrides)


def load_settings(model: type[SomeSettings], path: str | Path, overrides: Sequence[str] = ()) -> SomeSettings:
    """Settings of any kind, read and checked as `load_config` does those of a run.

    Raises:
        ConfigError: as `load_config`.
    """
    raw = read_settings(path)
    for override in overrides:
        apply_override(raw, override)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(_lines(error))
        raise ConfigError(f"{path} has {error.error_count()} error(s):\n{lines}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; `load_config` reads it back to an equal config.

    Every default is written out, but for settings that came later and are not changed (`exclude_if`).
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def place_output(config: RunConfig, working_directory: Path, home: Path) -> RunConfig:
    """Make `output` absolute, so that it means the same in every process of the run.

    A job's working directory is a copy that Ray deletes some time after the job, so a relative `output` of a
    job that was submitted by hand goes under `<home>/sluice` instead.
    """
    base = home / "sluice" if _RAY_COPY.search(working_directory.as_posix()) else working_directory
    return config.model_copy(update={"output": str(base / Path(config.output).expanduser())})


_RAY_COPY = re.compile(r"/runtime_resources/working_dir_files/_ray_pkg_")


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(the whole config)"
        value = item.get("input")
        shown = f" (value: {value!r})" if isinstance(value, str | int | float | bool | None) else ""
        lines.append(f"  {where}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return lines
