"""The arms that `compare: full` trains beside the post-training and the control.

    mixture        the objective without its gate: the group-relative term on every prompt
    random_gate    the objective with a gate by chance, at the rate that the gate of the run had
    sft_all        no post-training: the same pretraining from scratch on all logs until the end of the fresh
                   part, which is what a team without post-training would do with the fresh logs

The first two go through the same rollouts, rankers and steps as the post-training, from the same start.
"""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import ConfigError
from sluice.catalog.files import to_finite, write_atomically
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.settings.objective import (
    AdaGrpoObjective,
    MixtureObjective,
    NllObjective,
    Objective,
)
from sluice.learner.training.metrics_log import board_of
from sluice.learner.training.objective import build_objective
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.metrics_file import seconds_of
from sluice.services.stages.pretrain import matches_start, pretraining_seconds
from sluice.services.stages.staging import stage_inputs

ROLLED_OUT = ("mixture", "random_gate")
SFT_ALL = "sft_all"
_STAMP = "arm.json"
_FIGURES = "figures.json"
# Of `rollout`: what decides which groups the arms with rollouts learn from. The rest says where and how fast.
_OF_GROUPS = {"decode", "distractors", "distractor_draw", "prompts_per_lease"}


def rolled_out_arms(objective: Objective, gate_rate: float) -> dict[str, Objective]:
    """The objectives of the arms with rollouts, by name; none for an objective without a gate.

    `gate_rate` is the mean of the gate over the steps of the post-training.
    """
    if not isinstance(objective, AdaGrpoObjective):
        return {}
    shared = objective.model_dump(exclude={"type", "gate"})
    arms: dict[str, Objective] = {"mixture": MixtureObjective.model_validate(shared)}
    if objective.gate.mode != "random":
        gate = GateSettings(mode="random", random_rate=gate_rate)
        arms["random_gate"] = objective.model_copy(update={"gate": gate})
    return arms


def has_sft_on_all_logs(dataset: Dataset) -> bool:
    """Whether there is a fresh part: without one, SFT on all logs is the start."""
    return dataset.prompt_part == "fresh"


def check_compare(config: RunConfig, dataset: Dataset) -> None:
    """Before hours of training: whether `compare: full` has anything to compare with.

    Raises:
        ConfigError: it has not.
    """
    if (
        config.compare == "full"
        and not rolled_out_arms(config.objective, 0.0)
        and not has_sft_on_all_logs(dataset)
    ):
        raise ConfigError(
            f"compare full has nothing to train: objective {config.objective.type} has no gate to leave out, "
            f"and data.split {config.data.split.type} has no fresh part that a pretraining could add: set "
            f"compare to basic, objective.type to adagrpo, or data.split.type to fresh"
        )


def arm_inputs(config: RunConfig, objective: Objective) -> str:
    """What an arm is trained with: its stamp. The start says which data, and how policies are evaluated."""
    trust = getattr(getattr(objective, "gate", None), "trust", None)
    # A gate that asks for no trust is the one of the release before, which had no such setting.
    shown = objective.model_dump(mode="json", exclude=None if trust else {"gate": {"trust"}})
    inputs = {
        "start": stage_inputs(RunPaths.of(config).policy),
        "seed": config.seed,
        "objective": shown,
        "learner": config.learner.model_dump(mode="json"),
    }
    if build_objective(objective).needs_groups:
        rollout = config.rollout.model_dump(mode="json", include=_OF_GROUPS)
        staleness = {"publish": config.weights.publish_every, "most": config.queue.max_staleness}
        inputs |= {"rollout": rollout, "staleness": staleness}
    return json.dumps(inputs, indent=1, sort_keys=True)


def is_trained(paths: RunPaths, name: str, inputs: str) -> bool:
    """Whether an arm has ended, with these inputs. A resumed run may have others."""
    stamp = paths.arm(name).last / _STAMP
    return stamp.is_file() and stamp.read_text() == inputs


def mark_begun(paths: RunPaths, name: str) -> None:
    """The arm begins anew, and its policies are soon no longer those of its stamp."""
    (paths.arm(name).last / _STAMP).unlink(missing_ok=True)


def mark_trained(paths: RunPaths, name: str, inputs: str) -> None:
    """The arm has ended."""
    write_atomically(paths.arm(name).last / _STAMP, inputs)


def discard_outdated(config: RunConfig, paths: RunPaths, gate_rate: float) -> tuple[str, ...]:
    """Before the judge: arms that were not trained to their end, or with other settings than these, go.

    A resumed run may leave out `compare: full`, or have other settings, and what is here would be compared
    with its policies. Returns the names of those that went.
    """
    objectives = {"control": NllObjective(), **rolled_out_arms(config.objective, gate_rate)}
    outdated = [
        name
        for name in ("control", *ROLLED_OUT)
        if paths.arm(name).best.exists()
        and not (name in objectives and is_trained(paths, name, arm_inputs(config, objectives[name])))
    ]
    for name in outdated:
        _discard_arm(paths, name)
    if paths.sft_all.exists() and not matches_start(paths):
        shutil.rmtree(paths.sft_all)
        outdated.append(SFT_ALL)
    return tuple(outdated)


def ended_figures(config: RunConfig, paths: RunPaths) -> dict[str, Any] | None:
    """What a post-training that has ended told of itself; None: it has not ended, or would go on with this
    config.
    """
    place, stamp = paths.last / _FIGURES, paths.last / _STAMP
    if not (place.is_file() and stamp.is_file()):
        return None
    figures: dict[str, Any] = json.loads(place.read_text())
    if figures["throughput"]["learner_steps"] >= config.learner.steps:
        return figures
    # It ran out of patience, which other settings might give it again.
    return figures if is_trained(paths, "train", arm_inputs(config, config.objective)) else None


def mark_ended(config: RunConfig, paths: RunPaths, figures: Mapping[str, Any]) -> None:
    """The post-training has ended: what it told of itself is kept, should the run be resumed."""
    write_atomically(paths.last / _FIGURES, json.dumps(to_finite(figures)))
    mark_trained(paths, "train", arm_inputs(config, config.objective))


def discard_training(config: RunConfig, paths: RunPaths) -> None:
    """Before a post-training begins anew: the policies, curves and figures of the one before go, and the arms
    that are not those of this one.
    """
    _discard_arm(paths, "train")
    for file in (paths.summary, paths.report, paths.ranks, paths.trust):
        file.unlink(missing_ok=True)
    # At which rate a random gate is to admit is not known yet.
    discard_outdated(config, paths, gate_rate=0.0)


def _discard_arm(paths: RunPaths, name: str) -> None:
    arm = paths.arm(name)
    for directory in (arm.best, arm.last, arm.best_checkpoint, arm.kept, board_of(arm.metrics)):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (arm.metrics, arm.journal):
        file.unlink(missing_ok=True)


def costs_of(paths: RunPaths) -> Mapping[str, Any]:
    """Seconds that each training of the run took, validations included, by the name of its row; without what
    nobody measured.
    """
    seconds = {
        "start": pretraining_seconds(paths.policy),
        "best": seconds_of(paths.arm("train").metrics),
        **{name: seconds_of(paths.arm(name).metrics) for name in ("control", *ROLLED_OUT)},
        SFT_ALL: pretraining_seconds(paths.sft_all),
    }
    return {name: value for name, value in seconds.items() if value is not None}
