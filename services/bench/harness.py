"""`sluice bench NAME`: measurements that compare two or more sides in one run, and print JSON.

Each bench is a module of this package with `run(options) -> dict`: the sides are timed in alternating order,
a figure is the median of `repeats`, and the answer carries a description of the machine. Nothing here asserts
a time.
"""

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from sluice.catalog.errors import ConfigError
from sluice.catalog.files import write_atomically
from sluice.services.config_yaml import current_name

Side = TypeVar("Side")


class Bench(NamedTuple):
    """One entry of `sluice bench`."""

    module: str  # of this package; imported only when the bench is run
    compares: str


BENCHES: dict[str, Bench] = {
    "queue": Bench(
        "system.queue", "groups per second and latency through the rollout queue, by producers and consumers"
    ),
    "floors": Bench(
        "floors", "the quick ratios of trie, learner and beam against generous floors; fails below one"
    ),
    "coldstart": Bench("system.coldstart", "from sluice submit to the first optimizer step, by phase"),
    "overlap": Bench(
        "system.overlap",
        "steps of the whole loop against each of its parts alone, and against a loop without overlap",
    ),
    "rollout": Bench(
        "system.rollout",
        "groups per second through the whole rollout service against a bare loop of vLLM's LLM.generate",
    ),
    "sync": Bench(
        "system.sync",
        "publish-to-active of new weights on n engines against a bare load, and the pause of generation",
    ),
    "scale": Bench(
        "system.scale",
        "throughput and cost of the control plane with 4 to 256 rollout actors on simulated engines",
    ),
    "scale-data": Bench(
        "system.scale_data", "sluice prepare over logs of growing size: seconds by stage, memory"
    ),
    "learner": Bench(
        "learner.learner",
        "optimizer steps on shared prefixes against one row per candidate, right-padded and as TRL does it",
    ),
    "compile": Bench(
        "learner.compile",
        "optimizer steps with and without learner.compile, and when the compiling has paid for itself",
    ),
    "beam": Bench("engines.beam", "constrained beams: tree decoder against transformers generate"),
    "engines": Bench("engines.engines", "sampling: tree engine against vLLM engine"),
    "constrained": Bench(
        "engines.constrained",
        "trie-constrained against free sampling in the vLLM engine, over catalogue sizes",
    ),
    "trie": Bench(
        "engines.trie",
        "the mask of 1,024 prefixes by the trie against a dictionary of prefixes, over catalogue sizes",
    ),
}


# Former name -> name; a row stays for one release.
RENAMED_BENCHES: dict[str, str] = {"gate": "floors"}


def current_bench(name: str) -> str:
    """Today's name of a bench; warns when `name` is a former one."""
    return current_name(name, "sluice bench", RENAMED_BENCHES)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What every bench is told."""

    repeats: int = 5  # timed runs per side; the figure is their median
    threads: int = 1  # torch threads
    quick: bool = False  # smaller sizes, for a look and for the regression gate
    seed: int = 0
    rows: tuple[int, ...] = ()  # of the logs of `scale-data`; none: its own


def run_bench(name: str, options: BenchOptions, output: Path | None) -> int:
    """Run a bench, print its JSON to stdout and write it to `output` when that is given.

    Raises:
        ConfigError: there is no bench of that name, or the output cannot be written.
    """
    if name not in BENCHES:
        raise ConfigError(f"there is no bench {name!r}; there are {', '.join(sorted(BENCHES))}")
    if options.rows and name != "scale-data":
        raise ConfigError(f"--rows is for the bench scale-data: bench {name} has no logs of that many rows")
    if output is not None and not output.resolve().parent.is_dir():
        raise ConfigError(f"--json {output}: there is no directory {output.resolve().parent}")
    import torch

    torch.set_num_threads(options.threads)
    result = {
        "bench": name,
        "compares": BENCHES[name].compares,
        "machine": describe_machine(options),
        **bench_module(name).run(options),
    }
    text = json.dumps(result, indent=1)
    if output is not None:
        write_atomically(output, text + "\n")
    print(text)
    return 0


def bench_module(name: str) -> ModuleType:
    """The module of a bench, with its `run(options) -> dict`."""
    return importlib.import_module(f"{__package__}.{BENCHES[name].module}")


def print_note(text: str) -> None:
    """A line of progress, kept apart from the JSON."""
    print(text, file=sys.stderr, flush=True)


def time_alternately(
    sides: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every run of every side: one warm-up each, then `repeats` rounds, every other one in reverse
    order.

    A run on this process's GPU ends when the GPU is done.
    """
    for side in sides.values():
        side()
        _finish()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(repeats):
        for name in in_turn(list(sides), round_number):
            started_s = clock()
            sides[name]()
            _finish()
            seconds[name].append(clock() - started_s)
    return seconds


def _finish() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turn(sides: Sequence[Side], round_number: int) -> Sequence[Side]:
    """The sides in the order in which they take their turns: every other round it is reversed."""
    return sides if round_number % 2 == 0 else sides[::-1]


def median_seconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of every side."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def describe_machine(options: BenchOptions) -> dict[str, Any]:
    """The machine and the code, and what else figures depend on."""
    import torch

    from sluice.services.run.manifest import describe_run

    facts = describe_run(Path(__file__).parent, os.environ)
    facts = {
        **facts.pop("host"),
        **facts,
        "threads": options.threads,
        "matmul_gflops": round(matmul_gflops(), 1),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def matmul_gflops(size: int = 1024, seconds: float = 0.5, device: str = "cpu") -> float:
    """The best float32 matmul rate seen within about `seconds`, in GFLOP/s, with the library that the learner
    takes.
    """
    import torch

    from sluice.learner.kernels.onednn import onednn_linear

    first, second = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    onednn_linear(first, second)
    _finish()
    best, until_s = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        started_s = time.perf_counter()
        onednn_linear(first, second)
        _finish()
        best = max(best, 2 * size**3 / (time.perf_counter() - started_s) / 1e9)
    return best
