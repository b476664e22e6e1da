"""The command line. `--help` and `config check` import neither torch nor Ray nor vLLM, so they answer at
once.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sluice.catalog.errors import ConfigError, SluiceError
from sluice.services.bench.harness import BENCHES, BenchOptions, current_bench, run_bench
from sluice.services.config import RunConfig, dump_config, load_config, place_output

INTERRUPTED = 130

_EPILOG = """examples:
  sluice submit --config configs/ml100k.yaml
  sluice submit --config configs/ml100k.yaml --set learner.lr=1e-5 --set learner.steps=400 --seed 1
  sluice config check configs/ml100k.yaml
  sluice config explain learner.lr

`sluice submit` runs `sluice train` as a job on a Ray cluster. `prepare`, `pretrain` and `fit-ranker` are the
first steps of `train`, each on its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 2 a mistake in the input, 3 the cluster, 4 the run, 130 Ctrl-C."""
    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sluice: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser; every command sets `run` to the function that carries it out."""
    parser = argparse.ArgumentParser(
        prog="sluice",
        description="Gated reinforcement-learning post-training of generative recommenders on Ray.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version, and the commit of a checkout"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        return command

    prepare = add("prepare", _prepare, "turn raw logs into the Parquet contracts, semantic IDs and splits")
    _add_config(prepare)
    prepare.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: data/ of the run directory)"
    )
    _add_config(add("pretrain", _pretrain, "train the starting policy by next-token NLL"))
    _add_config(add("fit-ranker", _fit_ranker, "train the built-in ranker on the logged interactions"))

    train = add(
        "train", _train, "run the whole thing here: data, policy, ranker, post-training, evaluation, report"
    )
    _add_config(train)
    _add_resume(train)

    evaluate = add("evaluate", _evaluate, "measure a policy directory over the full catalogue")
    _add_config(evaluate)
    evaluate.add_argument(
        "--policy", type=Path, required=True, metavar="DIR", help="a Hugging Face model directory"
    )
    evaluate.add_argument("--split", choices=["valid", "test"], default="valid")

    report = add("report", _report, "write report.html of a run directory again")
    report.add_argument("run_directory", type=Path, metavar="RUN_DIR")

    bench = add("bench", _bench, "measure, comparing sides in one run; prints JSON")
    bench.add_argument(
        "name",
        type=current_bench,
        choices=sorted(BENCHES),
        metavar="NAME",
        help=", ".join(sorted(BENCHES)),
    )
    bench.add_argument("--json", type=Path, metavar="F", help="also write the JSON to this file")
    bench.add_argument("--repeats", type=int, default=5, help="timed runs per side (default: 5)")
    bench.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    bench.add_argument("--quick", action="store_true", help="smaller sizes")
    bench.add_argument("--seed", type=int, default=0)

    _add_submit(add("submit", _submit, "run `sluice train` as a job on a Ray cluster and follow it"))

    catalogue = add("catalogue", _push, "change the catalogue of a run")
    pushes = catalogue.add_subparsers(title="actions", metavar="ACTION", required=True)
    push = pushes.add_parser(
        "push",
        help="add items to the catalogue of a run that goes on, or retire items",
        description="Add items to the catalogue of a run, or retire items. A run that goes on takes the "
        "change up within seconds, between two engine steps; one that does not, when it is resumed.",
    )
    push.add_argument("run_directory", type=Path, metavar="RUN_DIR")
    push.add_argument(
        "--add",
        type=Path,
        metavar="FILE",
        help="Parquet or CSV with the columns item_id and codes; codes may leave the last level out",
    )
    push.add_argument("--retire", type=Path, metavar="FILE", help="Parquet or CSV with the column item_id")
    push.set_defaults(run=_push)

    _add_config_actions(add("config", _check, "check a config, or explain its settings"))
    return parser


def _add_config_actions(config: argparse.ArgumentParser) -> None:
    actions = config.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="print the resolved config, or each error with its field path")
    check.add_argument("file", metavar="FILE")
    _add_overrides(check)
    check.set_defaults(run=_check)
    explain = actions.add_parser(
        "explain",
        help="print what a setting is: type, bounds, default, unit, meaning",
        description="Print what a setting is, or the table of a group of settings.",
    )
    explain.add_argument(
        "setting",
        metavar="SETTING",
        nargs="?",
        default="",
        help="as in learner.lr, or a group as in learner (default: the groups)",
    )
    explain.add_argument("--config", metavar="FILE", help="also print the value in this YAML file")
    _add_overrides(explain)
    explain.set_defaults(run=_explain)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object, **__: object
    ) -> None:
        from sluice.services.run.manifest import describe_version

        print(describe_version(Path(__file__).parent))
        parser.exit()


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one setting, as in learner.lr=1e-5 (repeatable)",
    )
    parser.add_argument("--seed", type=int, help="short for --set seed=N")


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        nargs="?",
        const="last",
        choices=["last", "best"],
        help="go on from the run directory's last checkpoint (default), or go back to its best one",
    )


def _add_submit(submit: argparse.ArgumentParser) -> None:
    _add_config(submit)
    _add_resume(submit)
    submit.add_argument(
        "--detach", action="store_true", help="return once the job is submitted, and leave it running"
    )
    submit.add_argument(
        "--address",
        metavar="URL",
        help="job server of a cluster (default: RAY_API_SERVER_ADDRESS, then a head on this machine, then a "
        "new one)",
    )
    submit.add_argument(
        "--keep-cluster", action="store_true", help="do not end the local head that this command started"
    )


def _overrides(options: argparse.Namespace) -> list[str]:
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    return [*options.overrides, *seed]


def _config(options: argparse.Namespace) -> RunConfig:
    return place_output(load_config(options.config, _overrides(options)), Path.cwd(), Path.home())


def _check(options: argparse.Namespace) -> int:
    sys.stdout.write(dump_config(load_config(options.file, _overrides(options))))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from rich.console import Console

    from sluice.services.cli.explain import explain_setting

    if _overrides(options) and options.config is None:
        raise ConfigError("--set and --seed change a config: give --config FILE too")
    config = None if options.config is None else load_config(options.config, _overrides(options))
    explain_setting(options.setting, config, Console(highlight=False, soft_wrap=False))
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from sluice.services.progress import Reporter
    from sluice.services.stages.prepare import prepare_data

    config = _config(options)
    output = options.output or config.directory / "data"
    with Reporter.for_stream(sys.stdout) as reporter, reporter.phase("prepare") as progress:
        result = prepare_data(config.data, output, progress)
    return _done(output, result)


def _pretrain(options: argparse.Namespace) -> int:
    from sluice.services.progress import Reporter
    from sluice.services.stages import pretrain

    config = _config(options)
    with Reporter.for_stream(sys.stdout) as reporter, reporter.phase("pretrain") as progress:
        result = pretrain.run_pretraining(config, progress)
    return _done(config.directory / "policy", result)


def _fit_ranker(options: argparse.Namespace) -> int:
    from sluice.services.paths import RunPaths
    from sluice.services.progress import Reporter
    from sluice.services.report.ranker_view import quality_lines
    from sluice.services.stages import fit_ranker

    config = _config(options)
    with Reporter.for_stream(sys.stdout) as reporter, reporter.phase("fit-ranker") as progress:
        result = fit_ranker.run_ranker_fit(config, progress)
    for line in quality_lines(fit_ranker.read_quality(RunPaths.of(config))):
        print(line)
    return _done(config.directory / "ranker", result)


def _train(options: argparse.Namespace) -> int:
    from sluice.services.run import train

    return train.run_training(_config(options), options.resume)


def _evaluate(options: argparse.Namespace) -> int:
    if not options.policy.is_dir():
        raise ConfigError(f"--policy {options.policy} is no directory: give a Hugging Face model directory")
    from sluice.services.progress import Reporter
    from sluice.services.stages import evaluate

    config = _config(options)
    with Reporter.for_stream(sys.stdout) as reporter, reporter.phase("evaluate") as progress:
        result = evaluate.run_evaluation(config, options.policy, options.split, progress)
    return _done(options.policy, result)


def _bench(options: argparse.Namespace) -> int:
    settings = BenchOptions(
        repeats=options.repeats, threads=options.threads, quick=options.quick, seed=options.seed
    )
    return run_bench(options.name, settings, options.json)


def _report(options: argparse.Namespace) -> int:
    from sluice.services.report import report

    print(report.write_report(options.run_directory))
    return 0


def _push(options: argparse.Namespace) -> int:
    from sluice.services.stages.catalogue import push_change

    version = push_change(options.run_directory, options.add, options.retire)
    print(f"catalogue version {version.version}: {version.trie.items} items, {len(version.retired)} retired")
    return 0


def _submit(options: argparse.Namespace) -> int:
    from sluice.services.submit.submit import SubmitOptions, submit_job

    return submit_job(
        SubmitOptions(
            config=Path(options.config),
            overrides=tuple(_overrides(options)),
            resume=options.resume,
            detach=options.detach,
            address=options.address,
            keep_cluster=options.keep_cluster,
        )
    )


def _done(where: Path, result: object) -> int:
    if isinstance(result, Mapping):
        print(json.dumps(result, indent=2, default=str))
    print(where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
