"""What each command of the command line does: from parsed arguments to a call of a service.

Each function takes what the parser found and returns an exit code. It imports its service when it is called,
so that `--help` and `config check` load neither torch nor Ray nor vLLM.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from sluice.catalog.errors import ConfigError
from sluice.services.ab.plan import Plan
from sluice.services.bench.harness import BenchOptions, run_bench
from sluice.services.config import RunConfig, dump_config, load_config, load_world, place_output
from sluice.services.paths import RunPaths


def _overrides(options: argparse.Namespace) -> list[str]:
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    return [*options.overrides, *seed]


def _config(options: argparse.Namespace) -> RunConfig:
    return place_output(load_config(options.config, _overrides(options)), Path.cwd(), Path.home())


@dataclass(frozen=True, kw_only=True)
class _OwnRun:
    """A run directory that this command alone works in."""

    paths: RunPaths
    begun: bool  # it has checkpoints, so that its data, policy and ranker stay as they are


@contextlib.contextmanager
def _own_run(config: RunConfig) -> Iterator[_OwnRun]:
    """For a stage alone: the lock of the run directory, and whether checkpoints rest on what is there."""
    from sluice.services.run import leftovers
    from sluice.services.run_lock import hold_run

    with hold_run(config.directory):
        paths = RunPaths.of(config)
        leftovers.settle(paths)
        yield _OwnRun(paths=paths, begun=leftovers.check_kept(config, paths))


def check_config(options: argparse.Namespace) -> int:
    """`sluice config check`: print the resolved config, or with `--deep` what is wrong with the run."""
    config = load_config(options.file, _overrides(options))
    if not options.deep:
        sys.stdout.write(dump_config(config))
        return 0
    from sluice.services.preflight.show import check_and_show
    from sluice.services.submit.machines import machines_without_job

    code = check_and_show(config, machines_without_job(), sys.stdout)
    if code == 0:
        print(f"{options.file}: the run may start")
    return code


def explain_config(options: argparse.Namespace) -> int:
    """`sluice config explain`: print what a setting is."""
    from rich.console import Console

    from sluice.services.cli.explain import explain_setting

    if _overrides(options) and options.config is None:
        raise ConfigError("--set and --seed change a config: give --config FILE too")
    config = None if options.config is None else load_config(options.config, _overrides(options))
    explain_setting(options.setting, config, Console(highlight=False, soft_wrap=False))
    return 0


def simulate_logs(options: argparse.Namespace) -> int:
    """`sluice simulate`: a world whose truth is known, as logs to prepare."""
    from sluice.services.progress import Reporter
    from sluice.services.stages.simulate import simulate_world

    world = load_world(options.world, _overrides(options))
    output = options.output or Path.cwd() / world.directory
    with Reporter.for_stream(sys.stdout) as reporter, reporter.phase("simulate") as progress:
        result = simulate_world(world, output, progress)
    for line in result.lines():
        print(line)
    return _done(output, result)


def prepare_run_data(options: argparse.Namespace) -> int:
    """`sluice prepare`: the first phase of a run, alone."""
    from sluice.services.progress import Reporter
    from sluice.services.run.inputs import prepare_run
    from sluice.services.stages.prepare import prepare_data

    config = _config(options)
    output = options.output or config.directory / "data"
    with (
        contextlib.nullcontext(None) if options.output else _own_run(config) as own,
        Reporter.for_stream(sys.stdout) as reporter,
        reporter.phase("prepare") as progress,
    ):
        if own is None:
            result = prepare_data(config.data, output, progress)
        else:
            result = prepare_run(config, own.paths, progress, keep=own.begun)
    for line in result.lines():
        print(line)
    return _done(output, result)


def pretrain_run_policy(options: argparse.Namespace) -> int:
    """`sluice pretrain`: the starting policy of a run."""
    from sluice.services.progress import Reporter
    from sluice.services.stages import pretrain

    config = _config(options)
    with (
        _own_run(config) as own,
        Reporter.for_stream(sys.stdout) as reporter,
        reporter.phase("pretrain") as progress,
    ):
        result = pretrain.run_pretraining(config, progress, keep=own.begun)
    return _done(config.directory / "policy", result)


def fit_run_ranker(options: argparse.Namespace) -> int:
    """`sluice fit-ranker`: the built-in ranker of a run, and how good it is."""
    from sluice.services.progress import Reporter
    from sluice.services.report.ranker_view import quality_lines
    from sluice.services.stages import fit_ranker

    config = _config(options)
    with (
        _own_run(config) as own,
        Reporter.for_stream(sys.stdout) as reporter,
        reporter.phase("fit-ranker") as progress,
    ):
        result = fit_ranker.run_ranker_fit(config, progress, keep=own.begun)
    for line in quality_lines(fit_ranker.read_quality(RunPaths.of(config))):
        print(line)
    return _done(config.directory / "ranker", result)


def train_run(options: argparse.Namespace) -> int:
    """`sluice train`: the whole run, here, once nothing is wrong with it; returns its code."""
    from sluice.services.preflight.resources import joined_cluster
    from sluice.services.preflight.show import check_and_show
    from sluice.services.run.leftovers import check_checkpoints, is_forking
    from sluice.services.run_lock import check_idle, hold_run

    config, resume = _config(options), options.resume
    check_fork(options.fork, resume)
    check_idle(config.directory)
    paths = RunPaths.of(config)
    forks = is_forking(paths, resume, options.fork)
    check_checkpoints(paths, None if forks else resume)
    code = check_and_show(config, lambda _with_gpus: joined_cluster(), sys.stderr)
    if code:
        return code
    with hold_run(config.directory):
        from sluice.services.run import train

        if forks:
            from sluice.services.run.fork import ForkPoint, fork_run

            print(fork_run(config, ForkPoint.parse(options.fork)), flush=True)
            resume = "last"
        return train.run_training(config, resume)


def check_fork(fork: str | None, resume: str | None) -> None:
    """Raises ConfigError when a run is to be forked and resumed at once."""
    if fork is not None and resume not in (None, "auto"):
        raise ConfigError(
            f"--fork begins a run and --resume {resume} goes on with one: give --fork alone, or with "
            "--resume auto, which goes on with the fork once it has begun"
        )


def evaluate_directory(options: argparse.Namespace) -> int:
    """`sluice evaluate`: measure a policy directory."""
    if not options.policy.is_dir():
        raise ConfigError(f"--policy {options.policy} is no directory: give a Hugging Face model directory")
    from sluice.services.progress import Reporter
    from sluice.services.stages import evaluate

    config = _config(options)
    with Reporter.for_stream(sys.stdout) as reporter, reporter.phase("evaluate") as progress:
        result = evaluate.run_evaluation(config, options.policy, options.split, progress)
    return _done(options.policy, result)


def audit_ranker(options: argparse.Namespace) -> int:
    """`sluice audit`: is the ranker good enough to be a reward?"""
    from sluice.services.audit.audit import PAGE_FILE, run_audit
    from sluice.services.audit.page import terminal_lines
    from sluice.services.progress import Reporter

    config = _config(options)
    with _own_run(config) as own, Reporter.for_stream(sys.stdout) as reporter:
        audit = run_audit(config, options.prompts, options.trust, reporter, keep=own.begun)
    for line in terminal_lines(audit):
        print(line)
    print(RunPaths.of(config).audit / PAGE_FILE)
    return 0


def advise_after_run(options: argparse.Namespace) -> int:
    """`sluice advise`: what a finished run came to, and which knob to turn next."""
    from sluice.services.advise.advice import advise, read_run

    summary, steps = read_run(options.run_directory)
    for line in advise(summary, steps).lines():
        print(line)
    return 0


def measure_bench(options: argparse.Namespace) -> int:
    """`sluice bench`: measure, and print JSON."""
    settings = BenchOptions(
        repeats=options.repeats,
        threads=options.threads,
        quick=options.quick,
        seed=options.seed,
        rows=options.rows,
    )
    return run_bench(options.name, settings, options.json)


def write_run_report(options: argparse.Namespace) -> int:
    """`sluice report`: write the page of a run again."""
    from sluice.services.report import report

    print(report.write_report(options.run_directory))
    return 0


def push_to_run(options: argparse.Namespace) -> int:
    """`sluice catalogue push`: hand a change of the catalogue to a run."""
    from sluice.services.stages.catalogue import push_change

    version = push_change(options.run_directory, options.add, options.retire)
    print(f"catalogue version {version.version}: {version.trie.items} items, {len(version.retired)} retired")
    return 0


def submit_run(options: argparse.Namespace) -> int:
    """`sluice submit`: send the run to a cluster, and follow it."""
    from sluice.services.submit.submit import SubmitOptions, submit_job

    check_fork(options.fork, options.resume)
    return submit_job(
        SubmitOptions(
            config=Path(options.config),
            overrides=tuple(_overrides(options)),
            resume=options.resume,
            fork=options.fork,
            detach=options.detach,
            address=options.address,
            keep_cluster=options.keep_cluster,
        )
    )


def study_arms(options: argparse.Namespace) -> int:
    """`sluice study`: run a study, or say what is done of it."""
    from sluice.services.study.settings import load_study

    study = load_study(options.config)
    if options.action == "status":
        from sluice.services.study.results import status_lines

        print("\n".join(status_lines(study)))
        return 0
    if options.action == "report":
        from sluice.services.study.page import write_page

        print(write_page(study))
        return 0
    from sluice.services.study.command import run_on_cluster

    return run_on_cluster(study)


def compare_policies(options: argparse.Namespace) -> int:
    """`sluice ab`: test policies on the users of a simulated world."""
    from sluice.services.ab.command import Question, show_test

    config = place_output(load_config(options.config, options.overrides), Path.cwd(), Path.home())
    return show_test(
        Question(
            config=config,
            policies=tuple(options.policies),
            plan=Plan(**{option.name: getattr(options, option.name) for option in fields(Plan)}),
            world=options.world,
            output=options.output,
            most_users=options.users,
        )
    )


def _done(where: Path, result: object) -> int:
    if isinstance(result, Mapping):
        print(json.dumps(result, indent=2, default=str))
    print(where)
    return 0


def examine_run(options: argparse.Namespace) -> int:
    """`sluice doctor`: whether a run directory is whole."""
    from dataclasses import asdict

    from sluice.services.operate.doctor import examine

    diagnosis = examine(options.run_directory)
    if options.json:
        print(json.dumps(asdict(diagnosis), indent=1))
    else:
        print("\n".join(diagnosis.lines()))
    return 1 if diagnosis.problems else 0


def disturb_run(options: argparse.Namespace) -> int:
    """`sluice chaos`: a run under faults, beside the same run left alone; 1 when something was lost."""
    from sluice.services.interrupts import sigterm_interrupts
    from sluice.services.operate import chaos
    from sluice.services.operate.faults import FAULTS
    from sluice.services.progress import Reporter

    unknown = sorted(set(options.kinds) - set(FAULTS))
    if unknown:
        raise ConfigError(f"--kinds {unknown[0]!r} is none of {', '.join(FAULTS)}")
    directory = options.output.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    before = load_config(options.config, _overrides(options))
    overrides = _overrides(options) + chaos.overrides_of(before, options.faults, directory / "control")
    config = load_config(options.config, overrides)
    arguments = ["--config", str(options.config)]
    for override in overrides:
        arguments += ["--set", override]
    chaos.start_cluster(config)
    with (
        sigterm_interrupts(),
        Reporter.for_stream(sys.stderr) as reporter,
        reporter.phase("faults") as progress,
    ):
        outcome = chaos.run_chaos(
            config,
            arguments,
            faults=options.faults,
            kinds=options.kinds or list(FAULTS),
            directory=directory,
            progress=progress,
        )
    chaos.show(outcome, sys.stdout)
    print(f"written  {directory / 'chaos.json'}")
    return 0 if outcome.sound else 1
