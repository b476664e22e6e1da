"""`sluice train`: the whole job, from logs to a better policy.

    prepare -> pretrain -> fit-ranker    artefacts, built once
    post-train                           rollouts -> ranker -> queue -> learner -> weight board -> rollouts
    control                              the start continued with NLL alone: as many steps, the same prompts
    mixture, random_gate, sft_all        further arms, with `compare: full` (`services/run/arms.py`)
    judge                                all policies, the baselines and the ranker on the test examples

The driver only starts, watches and sums up; tensors never pass through it.
"""

import contextlib
import functools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import ConfigError, RankerError, RunError, SluiceError
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.catalog.tokens import TokenLayout
from sluice.cluster import session
from sluice.learner.objectives.settings.effects import check_prefixes
from sluice.learner.objectives.settings.objective import NllObjective, Objective
from sluice.learner.policy.policy import load_policy
from sluice.learner.training.checkpoint import find_fault
from sluice.learner.training.objective import build_objective
from sluice.learner.training.recovery import choose_checkpoint
from sluice.services.advise.advice import closing_sentences, read_run
from sluice.services.config import Resume, RunConfig
from sluice.services.config_resume import check_resume, name_changes
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress, Reporter
from sluice.services.report import report
from sluice.services.report.ranker_view import quality_lines
from sluice.services.run import arms, inputs, leftovers, manifest
from sluice.services.run.fleet import Fleet, reserve_places, start_fleet
from sluice.services.run.learner_job import run_learner
from sluice.services.run.metrics_file import read_metrics, seconds_of
from sluice.services.run.summary import judge_policies, write_summary
from sluice.services.run.tasks import State, run_tasks
from sluice.services.stages import fit_ranker, pretrain
from sluice.services.stages.catalogue import set_aside_foreign

_POLL_S = 0.5
_JOIN_S = 60.0  # for rollouts whose run was over before their engines were there


def run_training(config: RunConfig, resume: Resume = None) -> int:
    """Run the job, or `resume` it from its last or its best checkpoint; returns the exit code.

    Raises:
        RunError: the run directory already holds a post-training that is not to be resumed, or the run
            failed.
        ConfigError: the config changes what a resumed run must not change.
    """
    paths = RunPaths.of(config)
    leftovers.settle(paths)
    resume = leftovers.check_checkpoints(paths, resume)
    told = _check_going_on(config, paths, resume) if resume else []
    kept = manifest.write_manifest(config, paths.root, keep_fingerprints=resume is not None)
    with Reporter.for_stream(sys.stdout) as reporter:
        for line in told:
            reporter.line(line)
        if kept is not None:
            reporter.line(f"the config that was in force before is kept as {kept.name}")
        _prepare(config, paths, reporter, resumed=resume is not None)
        session.connect_cluster()
        _start_and_ranker(config, reporter, keep=resume is not None)
        if resume:
            inputs.check_unchanged(config, paths)
        manifest.record_fingerprints(paths.root, inputs.take_fingerprints(config, paths))
        for line in quality_lines(fit_ranker.read_quality(paths)):
            reporter.line(line)
        outcome = _train(config, paths, reporter, resume)
        gate_rate = outcome["gate"]["rate"] or 0.0
        if config.compare == "full":
            _train_arms(config, paths, reporter, gate_rate)
        for name in arms.discard_outdated(config, paths, gate_rate):
            reporter.line(f"compare: {name} was trained with other settings, or not to its end: removed")
        with reporter.phase("judge") as progress:
            summary = {**_header(config), **judge_policies(config, progress), **outcome}
        summary["cost_s"] = arms.costs_of(paths)
        summary["wall_s"] = {name: round(seconds, 1) for name, seconds in reporter.seconds.items()}
        write_summary(paths.summary, summary)
        page = report.write_report(paths.root)
        for line in report.terminal_lines(summary):
            reporter.line(line)
        reporter.line(f"summary  {paths.summary}")
        reporter.line(f"report   {page}")
        for sentence in closing_sentences(*read_run(paths.root)):
            reporter.line(sentence)
    return _end(summary)


def _end(summary: dict[str, Any]) -> int:
    """The exit code; raises RankerError where the ranker failed in the judge, once all else is written."""
    if "ranker_error" in summary:
        raise RankerError(f"{summary['ranker_error']}. Policies, summary and report are there without it")
    return 0


def _check_going_on(config: RunConfig, paths: RunPaths, resume: Resume) -> list[str]:
    """Whether the run may go on with this config, before anything is written; returns what to print of it.

    Raises:
        ConfigError: the config changes what a resumed run must not change.
        RunError: what is in the run directory is not what the run began with, or no checkpoint is whole.
    """
    changes = check_resume(config, paths.root)
    leftovers.check_same_data(config, paths)
    inputs.check_unchanged(config, paths)
    arm = paths.arm("train")
    if resume == "best" and (fault := find_fault(arm.best_checkpoint)):
        raise RunError(f"{arm.best_checkpoint} is damaged: {fault}. Give --resume to go on from the last one")
    lines = choose_checkpoint(arm.kept, arm.best_checkpoint).lines() if resume == "last" else []
    if changes:
        lines.append(f"resumed with other settings than before: {name_changes(changes)}")
    return lines


def _prepare(config: RunConfig, paths: RunPaths, reporter: Reporter, *, resumed: bool) -> None:
    with reporter.phase("prepare") as progress:
        prepared = inputs.prepare_run(config, paths, progress, keep=resumed)
    for line in prepared.lines():
        reporter.line(line)
    dataset = Dataset.open(paths.data)
    _check_rewards(config, dataset)
    arms.check_compare(config, dataset)
    aside = set_aside_foreign(paths, resumed=resumed)
    if aside is not None:
        reporter.line(f"catalogue: what was pushed for other data is set aside as {aside.name}")


def _start_and_ranker(config: RunConfig, reporter: Reporter, *, keep: bool) -> None:
    """Both need the data alone, so they are trained beside each other."""
    _run_phases(
        config,
        reporter,
        {
            "pretrain": functools.partial(pretrain.run_pretraining, config, keep=keep),
            "fit-ranker": functools.partial(fit_ranker.run_ranker_fit, config, keep=keep),
        },
    )


def _run_phases(config: RunConfig, reporter: Reporter, jobs: dict[str, Callable[[Progress], Any]]) -> None:
    """Jobs beside each other as Ray tasks, each shown as a phase."""
    phases = {name: contextlib.ExitStack() for name in jobs}
    shown = {name: stack.enter_context(reporter.phase(name)) for name, stack in phases.items()}

    def watch(name: str, state: State, ended: bool) -> None:
        shown[name](*state)
        if ended:
            phases[name].close()

    run_tasks(jobs, config.cluster, watch)


def _check_rewards(config: RunConfig, dataset: Dataset) -> None:
    """Before hours of training: whether log and catalogue have what the objective's rewards are made of."""
    try:
        check_prefixes(config.objective, len(dataset.level_sizes))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.needs_logged_reward and dataset.reward_column is None:
        raise ConfigError(
            f"objective {config.objective.type} learns from logged rewards, and the log has none: name its "
            f"column in data.source.columns (rating, click or dwell_seconds), or choose another objective"
        )


def _post_train(
    config: RunConfig, paths: RunPaths, reporter: Reporter, resume: Resume, fleet: Fleet | None = None
) -> None:
    if resume == "best":
        # Without checkpoints of Ray Train's the workers go on from the best one.
        shutil.rmtree(paths.arm("train").kept, ignore_errors=True)
    if resume is None:
        arms.discard_training(config, paths)
    run_learner(config, paths, "train", config.objective, reporter, fleet)


def _own_layout(paths: RunPaths) -> TokenLayout:
    """Of the start, which must have been made for this catalogue."""
    dataset = Dataset.open(paths.data)
    return load_policy(paths.policy, fingerprint_catalogue(dataset.item_ids, dataset.codes)).layout


def _train(config: RunConfig, paths: RunPaths, reporter: Reporter, resume: Resume) -> dict[str, Any]:
    """Post-training and control; returns their part of the summary. One that has ended starts no fleet."""
    figures = arms.ended_figures(config, paths) if resume == "last" else None
    if figures is None:
        arms.mark_begun(paths, "train")
        figures = _train_on(config, paths, reporter, resume)
        arms.mark_ended(config, paths, figures)
    else:
        steps = figures["throughput"]["learner_steps"]
        reporter.line(f"train    has ended, after {steps} steps: no fleet is started for it")
    if build_objective(config.objective).needs_groups:
        learn = functools.partial(run_learner, reporter=reporter)
        _train_once(config, paths, "control", NllObjective(), learn)
    return figures


def _train_on(config: RunConfig, paths: RunPaths, reporter: Reporter, resume: Resume) -> dict[str, Any]:
    """The post-training; returns what it tells of itself."""
    if not build_objective(config.objective).needs_groups:
        _post_train(config, paths, reporter, resume)
        prompts = config.learner.steps * config.learner.prompts_per_step
        return _figures(
            paths, reporter, {"issued": prompts, "trained": prompts, "stale": 0, "invalid": 0, "in_flight": 0}
        )
    of_fleet = _train_with_rollouts(
        config,
        paths,
        reporter,
        lambda fleet: _post_train(config, paths, reporter, resume, fleet),
        resumed=resume is not None,
    )
    figures = _figures(paths, reporter, of_fleet.pop("accounting"))
    return figures | {**of_fleet, "time": of_fleet["time"] | figures["time"]}


def _train_once(
    config: RunConfig,
    paths: RunPaths,
    name: str,
    objective: Objective,
    learn: Callable[[RunConfig, RunPaths, str, Objective], None],
) -> None:
    """An arm that has ended with the same settings is left as it is; another begins anew."""
    made_with = arms.arm_inputs(config, objective)
    if not arms.is_trained(paths, name, made_with):
        arms.mark_begun(paths, name)
        learn(config, paths, name, objective)
        arms.mark_trained(paths, name, made_with)


def _train_arms(config: RunConfig, paths: RunPaths, reporter: Reporter, gate_rate: float) -> None:
    """What `compare: full` adds."""

    def learn(config: RunConfig, paths: RunPaths, name: str, objective: Objective) -> None:
        arm = functools.partial(run_learner, config, paths, name, objective, reporter)
        # Its fleet measures what this arm's gate asks for.
        of_arm = config.model_copy(update={"objective": objective})
        _train_with_rollouts(of_arm, paths, reporter, arm)

    for name, objective in arms.rolled_out_arms(config.objective, gate_rate).items():
        _train_once(config, paths, name, objective, learn)
    if arms.has_sft_on_all_logs(Dataset.open(paths.data)):
        _run_phases(config, reporter, {arms.SFT_ALL: functools.partial(pretrain.run_sft_on_all_logs, config)})
    else:
        reporter.line(
            "compare: the split has no fresh part, so SFT on all logs is the start and no arm of its own"
        )


def _train_with_rollouts(
    config: RunConfig,
    paths: RunPaths,
    reporter: Reporter,
    learn: Callable[[Fleet], None],
    *,
    resumed: bool = False,
) -> dict[str, Any]:
    """Train beside a fleet of its own; returns what the fleet counted."""
    fleet = start_fleet(config, paths, _own_layout(paths), reserve_places(config))
    try:
        # The engines load while the learner starts and validates the policy it begins with.
        with _engines(fleet, config, reporter, resumed=resumed):
            learn(fleet)
        return {
            "accounting": fleet.queue.status().accounting,
            "time": fleet.times(),
            "restarts": fleet.restarts,
            "rollouts": fleet.stats(),
        }
    finally:
        fleet.stop()


@contextlib.contextmanager
def _engines(fleet: Fleet, config: RunConfig, reporter: Reporter, *, resumed: bool) -> Iterator[None]:
    """Lets the rollouts begin as soon as their engines are there, beside what happens inside. Those of a
    resumed run wait for its weights too, since groups of the start would all be stale.
    """
    over = threading.Event()

    def begin() -> None:
        with (
            contextlib.suppress(SluiceError),
            reporter.phase("engines") as progress,
        ):  # the learner is told of a failure
            progress(0, config.rollout.actors, {})
            while resumed and fleet.publisher.latest_version() == 0 and not over.wait(_POLL_S):
                pass
            fleet.begin(config.cluster.start_timeout_s)
            progress(config.rollout.actors, config.rollout.actors, {})

    thread = threading.Thread(target=begin, name="engines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=_JOIN_S)


def _figures(paths: RunPaths, reporter: Reporter, accounting: dict[str, int]) -> dict[str, Any]:
    """What the training itself tells: accounting, gate, throughput."""
    steps = read_metrics(paths.arm("train").metrics, "step")

    def mean(name: str) -> float | None:
        values = [step[name] for step in steps if name in step]
        return sum(values) / len(values) if values else None

    seconds = (
        seconds_of(paths.arm("train").metrics) or reporter.seconds["train"]
    )  # over all starts of the run
    return {
        "time": {
            f"learner-{row['rank']}": row["seconds"]
            for row in read_metrics(paths.arm("train").metrics, "time")
        },
        "accounting": accounting,
        "gate": {
            "rate": mean("gate_rate"),
            "difficulty": mean("difficulty"),
            "discriminability": mean("discriminability"),
            "trusted": mean("trusted"),
        },
        "throughput": {
            "groups_per_s": accounting["trained"] / seconds,
            "learner_steps": len(steps),
            "weight_versions": steps[-1]["learner_version"] if steps else 0,
            "staleness": mean("staleness"),
        },
    }


def _header(config: RunConfig) -> dict[str, Any]:
    header = {"objective": config.objective.type, "dataset": config.data.name, "seed": config.seed}
    if build_objective(config.objective).needs_groups:
        header["decode"] = asdict(config.decoding)
    return header
