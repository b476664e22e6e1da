"""Checks that the tests of the learning core can fail: `python -m tests.mutation [PART OF A FILE NAME]`.

Every mutant of `tests/mutation/mutants.py` is applied to a copy of the sources, and the tests named with it
are run there until the first failure. A mutant that no test kills makes the exit status 1. So do a copy whose
tests fail unmutated, and a mutant that no longer fits the source.

torch and transformers are imported once; each run is a fork of this process, so a mutant costs seconds less
than a fresh one.
"""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

# Loaded before the forks.
from transformers import CohereForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("catalog", "learner", "actors", "cluster", "services", "sluice", "docs", "tests")
RUN_TIMEOUT_S = 180.0
# Tests of two processes each, which cost more than all others together and kill nothing that they let live.
LEFT_OUT = "not two_ddp and not two_fsdp"


class _FirstFailure:
    """A pytest plugin that remembers the first test that failed."""

    def __init__(self) -> None:
        self.test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember it."""
        if report.failed and not self.test:
            self.test = report.nodeid.removeprefix("tests/unit/")


def _run(copy: Path, tests: tuple[str, ...], answer: Connection) -> None:
    """In a fork: run the tests against the sources in `copy`; answers (pytest's exit status, first
    failure).
    """
    with open(copy / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] in COPIED]:
        del sys.modules[name]
    sys.path[0] = str(copy)
    importlib.invalidate_caches()
    assert importlib.import_module("sluice").__file__ == str(copy / "sluice" / "__init__.py")
    first = _FirstFailure()
    paths = [f"tests/unit/{test}" for test in tests]
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, *paths], plugins=[first])
    answer.send((int(status), first.test))


def _verdict(copy: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Pytest's exit status and the first failure; a run that hangs or dies counts as failed by itself."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(copy, tests, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(RUN_TIMEOUT_S):
            return 1, f"(no answer within {RUN_TIMEOUT_S:.0f} s)"
        return receiver.recv()
    except EOFError:
        return -1, "(the run died without an answer)"
    finally:
        process.kill()
        process.join()


def _survives(mutant: Mutant, copy: Path) -> bool:
    """Try one mutant, print what became of it, and put the source back."""
    path = copy / mutant.file
    source = path.read_text()
    what = f"{mutant.file}: {' '.join(mutant.old.split())!r} -> {' '.join(mutant.new.split())!r}"
    stands = len(mutant.spans(source))
    if stands != 1:
        print(f"MISFIT    {what}\n          stands {stands} times in the source, not once", flush=True)
        return True
    path.write_text(mutant.applied(source))
    try:
        status, killer = _verdict(copy, mutant.tests)
    finally:
        path.write_text(source)
    if status == pytest.ExitCode.TESTS_FAILED:
        print(f"killed    {what}\n          by {killer}", flush=True)
        return False
    print(f"SURVIVED  {what}\n          pytest's exit status {status} {killer}", flush=True)
    return True


def main(wanted: str = "") -> int:
    """Try every mutant of the files whose name contains `wanted`."""
    torch.set_num_threads(1)  # a fork cannot use the threads of its parent
    sys.dont_write_bytecode = (
        True  # a mutant of the same size within the same second would be taken for the original
    )
    mutants = [mutant for mutant in MUTANTS if wanted in mutant.file]
    with tempfile.TemporaryDirectory(prefix="sluice-mutation-") as scratch:
        copy = Path(scratch)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name in COPIED:
            shutil.copytree(
                ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        status, killer = _verdict(copy, tuple(sorted({test for mutant in mutants for test in mutant.tests})))
        if status != pytest.ExitCode.OK:
            print(f"the tests fail without any mutant ({killer}):\n{(copy / 'output.txt').read_text()}")
            return 1
        survivors = sum(_survives(mutant, copy) for mutant in mutants)
    print(f"{len(mutants)} mutants, {survivors} survived")
    return 1 if survivors or not mutants else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
