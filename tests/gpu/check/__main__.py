"""What a CPU cannot show, in under eight minutes on one GPU: `make gpu-check`, `python -m tests.gpu.check`.

A fixed list of steps (`--list`), each a process of its own with a bound; the table is `gpu-check.json` and
`gpu-check.md` in `--output`, and each step's own output lies in a folder beside them. docs/gpu.md says more.
"""

import argparse
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tests.gpu.check import device
from tests.gpu.check.runner import GRACE_S, Runner
from tests.gpu.check.step import Budget, Result, Step
from tests.gpu.check.steps import ROOT, steps
from tests.gpu.check.table import Record, exit_status, show, verdict

BUDGET_S = 480.0
CPUS_OF_A_STEP = 4  # with fewer, a step beside others is slower than one after the other
INTERRUPTED = 130


def main() -> int:
    """Returns 0 when all steps passed, 1 when one did not, 2 for a mistake in the arguments, 130: Ctrl-C."""
    options = parser().parse_args()
    on_cpu = options.device == "cpu"
    every = steps(on_cpu, check_versions=not (on_cpu or options.any_versions))
    if options.list:
        for step in every:
            print(f"{step.name:14} up to {step.limit_s:3.0f} s  {step.shows}")
        return 0
    unknown = sorted(set(options.only) - {step.name for step in every})
    if unknown:
        print(f"gpu-check: there is no step {', '.join(unknown)}; --list names them", file=sys.stderr)
        return 2
    found = device.gpus()
    if not on_cpu and not found:
        print(device.MISSING, file=sys.stderr)
        return 1
    chosen = [step for step in every if not options.only or step.name in options.only]
    return run(chosen, options, "CPU, so figures say nothing about a GPU" if on_cpu else "; ".join(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__.partition("\n")[0])
    add = found.add_argument
    add("--output", type=Path, default=Path("runs/gpu-check"), metavar="DIR", help="default: %(default)s")
    add("--only", action="append", default=[], metavar="STEP", help="this step alone (repeatable)")
    add("--list", action="store_true", help="name the steps")
    add("--device", choices=["gpu", "cpu"], default="gpu", help="cpu: the steps that can run there")
    add("--budget", type=float, default=BUDGET_S, metavar="S", help="of all steps (default: %(default)s)")
    add("--any-versions", action="store_true", help="packages need not be those of requirements/gpu.lock")
    return found


def run(chosen: list[Step], options: argparse.Namespace, where: str) -> int:
    """Run them and print the table."""
    started_s = time.monotonic()
    on_cpu = options.device == "cpu"
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "device": where,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget_s": options.budget,
    }
    record = Record(output, facts, [Result(name=step.name, shows=step.shows) for step in chosen])
    console = Console(stderr=True)

    def take(result: Result) -> None:
        record.add(result)
        line = f"{result.name}: {result.outcome} after {result.seconds:.0f} s {result.note}"
        console.print(line, markup=False)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that steps are ended with the check
    runner = Runner(
        budget=Budget(total_s=options.budget - 2 * GRACE_S, clock=time.monotonic, started_s=started_s),
        output=output,
        environment=environment(on_cpu),
        record=take,
        beside=max(1, min(4, (os.cpu_count() or 1) // CPUS_OF_A_STEP)),
        on_cpu=on_cpu,
    )
    try:
        runner.run(chosen)
        status = exit_status(record.results, on_cpu)
    except KeyboardInterrupt:
        status = INTERRUPTED
    record.end(time.monotonic() - started_s)
    show(record.results, Console(width=160))
    print(f"{verdict(record.results)}\non {where}\n{options.output / 'gpu-check.md'}")
    return status


def environment(on_cpu: bool) -> dict[str, str]:
    """Of every step: this checkout's packages, and no GPU when it is to run on the CPU."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **hidden}


if __name__ == "__main__":
    sys.exit(main())
