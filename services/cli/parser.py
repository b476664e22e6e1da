"""The arguments of the command line. Every command sets `run` to the function of
`sluice.services.cli.commands` that carries it out.
"""

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from sluice.services.ab.plan import HELP, Plan
from sluice.services.bench.harness import BENCHES, current_bench
from sluice.services.cli import commands

_EPILOG = """examples:
  sluice submit --config configs/ml100k.yaml
  sluice submit --config configs/ml100k.yaml --set learner.lr=1e-5 --set learner.steps=400 --seed 1
  sluice config check configs/ml100k.yaml
  sluice config check --deep configs/ml100k.yaml
  sluice config explain learner.lr

`sluice submit` runs `sluice train` as a job on a Ray cluster. `prepare`, `pretrain` and `fit-ranker` are the
first steps of `train`, each on its own."""


# Of a command's name, what carries it out, and what it does: its parser.
_Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


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
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        return command

    _add_stages(add)
    train = add(
        "train",
        commands.train_run,
        "run the whole thing here: data, policy, ranker, post-training, evaluation, report",
    )
    _add_config(train)
    _add_resume(train)

    _add_evaluate(
        add("evaluate", commands.evaluate_directory, "measure a policy directory over the full catalogue")
    )
    _add_audit(
        add("audit", commands.audit_ranker, "ask before a training whether the ranker is good enough for it")
    )
    _add_looks(add)
    _add_bench(add("bench", commands.measure_bench, "measure, comparing sides in one run; prints JSON"))
    _add_submit(
        add("submit", commands.submit_run, "run `sluice train` as a job on a Ray cluster and follow it")
    )

    _add_study(add("study", commands.study_arms, "train and compare many arms, seeds and data sets"))
    _add_ab(add("ab", commands.compare_policies, "test policies on the users of a simulated world"))
    _add_catalogue_actions(add("catalogue", commands.push_to_run, "change the catalogue of a run"))
    _add_config_actions(add("config", commands.check_config, "check a config, or explain its settings"))
    return parser


def _add_stages(add: _Add) -> None:
    """The stages of a run, each by itself."""
    simulate = "make the logs of a world whose truth is known, and that truth"
    _add_simulate(add("simulate", commands.simulate_logs, simulate))
    _add_prepare(
        add(
            "prepare",
            commands.prepare_run_data,
            "turn raw logs into the Parquet contracts, semantic IDs and splits",
        )
    )
    _add_config(add("pretrain", commands.pretrain_run_policy, "train the starting policy by next-token NLL"))
    _add_config(
        add("fit-ranker", commands.fit_run_ranker, "train the built-in ranker on the logged interactions")
    )


def _add_looks(add: _Add) -> None:
    """What looks at a run, or disturbs one."""
    advise = add(
        "advise",
        commands.advise_after_run,
        "say whether a run's reward helped, where, how sure that is, and which setting to change next",
    )
    advise.add_argument("run_directory", type=Path, metavar="RUN_DIR")
    report = add("report", commands.write_run_report, "write report.html of a run directory again")
    report.add_argument("run_directory", type=Path, metavar="RUN_DIR")

    doctor = add(
        "doctor",
        commands.examine_run,
        "check that a run directory is whole: its checkpoints, its journal, and every prompt accounted for",
    )
    doctor.add_argument("run_directory", type=Path, metavar="RUN_DIR")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    _add_chaos(
        add(
            "chaos",
            commands.disturb_run,
            "hit a run with faults, and compare it with the same run left alone",
        )
    )


def _add_simulate(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument("world", metavar="CONFIG", help="the world's YAML file, as in configs/worlds/")
    _add_overrides(simulate)
    simulate.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: worlds/NAME-seedN)"
    )


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    _add_config(prepare)
    prepare.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: data/ of the run directory)"
    )


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    _add_config(evaluate)
    evaluate.add_argument(
        "--policy", type=Path, required=True, metavar="DIR", help="a Hugging Face model directory"
    )
    evaluate.add_argument("--split", choices=["valid", "test"], default="valid")


def _add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("config", metavar="CONFIG", help="the run's YAML file")
    _add_overrides(audit)
    audit.add_argument(
        "--prompts",
        type=_count,
        default=1000,
        metavar="N",
        help="validation prompts to ask about, at most (default: 1000)",
    )
    audit.add_argument(
        "--trust",
        action="store_true",
        help="measure trust by user where the gate does not ask for it too; fits the built-in ranker twice "
        "more",
    )


def _add_chaos(chaos: argparse.ArgumentParser) -> None:
    _add_config(chaos)
    chaos.add_argument(
        "--faults", type=_count, default=14, metavar="N", help="how many (default: 14, one of each kind)"
    )
    chaos.add_argument(
        "--kinds",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=[],
        metavar="KIND,...",
        help="which kinds (default: all)",
    )
    chaos.add_argument(
        "--output",
        type=Path,
        default=Path("runs/chaos"),
        metavar="DIR",
        help="for both runs (default: runs/chaos)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of prompts: give 1 or more")
    return int(text)


def _add_bench(bench: argparse.ArgumentParser) -> None:
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
    bench.add_argument(
        "--rows",
        type=_sizes,
        default=(),
        metavar="N,N",
        help="of scale-data's logs, such as 1000000,20000000",
    )


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if min(sizes) < 1000 or len(set(sizes)) < len(sizes):
        raise argparse.ArgumentTypeError("give different sizes of at least 1000 rows")
    return sizes


def _add_study(study: argparse.ArgumentParser) -> None:
    study.add_argument(
        "action",
        nargs="?",
        choices=["run", "status", "report"],
        default="run",
        help="run what is left of it (default), say what is done, or write its tables and page again",
    )
    study.add_argument("config", metavar="FILE", help="the study's YAML file")


def _add_ab(ab: argparse.ArgumentParser) -> None:
    ab.add_argument("config", metavar="CONFIG", help="the YAML file of the run whose data set it is")
    ab.add_argument(
        "policies",
        nargs="+",
        type=Path,
        metavar="POLICY",
        help="policy directories, two or more; the others are compared with the first",
    )
    ab.add_argument(
        "--world", type=Path, metavar="DIR", help="what `sluice simulate` wrote (default: where the log lies)"
    )
    ab.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: ab/ of the run directory)"
    )
    ab.add_argument("--users", type=int, metavar="N", help="take no more than so many users")
    for option in fields(Plan):
        name, text = "--" + option.name.replace("_", "-"), option.metadata[HELP]
        if isinstance(option.default, bool):
            ab.add_argument(name, action="store_true", help=text)
        else:
            kind = type(option.default)
            text = f"{text} (default: {option.default})"
            ab.add_argument(name, type=kind, metavar="N", default=option.default, help=text)
    ab.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override one setting of the config (repeatable)",
    )


def _add_catalogue_actions(catalogue: argparse.ArgumentParser) -> None:
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
    push.set_defaults(run=commands.push_to_run)


def _add_config_actions(config: argparse.ArgumentParser) -> None:
    actions = config.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="print the resolved config, or each error with its field path")
    check.add_argument("file", metavar="FILE")
    check.add_argument(
        "--deep",
        action="store_true",
        help="check everything that a run needs, in seconds: files, columns, sizes, resources, your ranker",
    )
    _add_overrides(check)
    check.set_defaults(run=commands.check_config)
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
    explain.set_defaults(run=commands.explain_config)


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
        choices=["last", "best", "auto"],
        help="go on from the run directory's last checkpoint (default), or go back to its best one; auto: go "
        "on where there is a checkpoint, and begin where there is none",
    )
    parser.add_argument(
        "--fork",
        metavar="RUN_DIR[@STEP]",
        help="begin with a checkpoint of another run (default: its last one), under another name, seed or "
        "output. Kept: policy, optimizer, count of steps, curves, data and start; the ranker where its "
        "settings are the same, and the order of the prompts where the seed is. Anew: the best checkpoint, "
        "the control and other arms. Refused where data or catalogue differ. With --resume auto a fork that "
        "has begun is gone on with",
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
