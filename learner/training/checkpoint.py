"""The learner's checkpoint: a directory from which a run goes on as if nothing had happened.

    policy/       the policy as a Hugging Face directory, loadable as it is by transformers and vLLM
    state.json    step, weight version, best validation so far, the source's snapshot (feed cursor, outstanding leases,
                  counters), bytes of the metrics file
    rank-<r>.pt   of each worker: optimizer, scheduler and random states, a synced or averaged reference, and the
                  weights that policy/ does not hold as they are trained: value head, adapters (policy/ has
                  them merged in), the worker's shares of a sharded policy

Ray Train moves the directories and keeps the last ones. The one with the best validation is kept here, where
every worker adds its part.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sluice.catalog.errors import RunError
from sluice.learner.policy.policy import Policy, save_policy

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What every worker needs to go on."""

    step: int  # optimizer steps done
    version: int  # weight version of the policy in this checkpoint
    best: tuple[float, float]  # best validation so far: HR@10, NDCG@10
    source: dict[str, Any]  # snapshot of the batch source
    metrics_bytes: int  # length of the metrics file


def write_checkpoint(directory: Path, state: RunState, policy: Policy) -> None:
    """Write the parts that rank 0 owns; `policy` is the plain policy."""
    save_policy(policy, directory / "policy")
    (directory / "state.json").write_text(json.dumps({"format": FORMAT, **asdict(state)}))


def write_rank(directory: Path, rank: int, state: dict[str, Any]) -> None:
    """Write one worker's own part."""
    torch.save(state, directory / f"rank-{rank}.pt")


def add_to_best(part: Path, best: Path) -> None:
    """Lay one worker's files beside the best checkpoint so far; `replace_best` follows when all have done
    so.
    """
    shutil.copytree(part, _fresh(best), dirs_exist_ok=True)


def replace_best(best: Path, policy_directory: Path) -> None:
    """What `add_to_best` laid down becomes the best checkpoint, and its policy the one at
    `policy_directory`.
    """
    _replace(_fresh(best), best)
    shutil.copytree(best / "policy", _fresh(policy_directory))
    _replace(_fresh(policy_directory), policy_directory)


def discard_unfinished(*directories: Path) -> None:
    """Remove what a process that died had begun to write in the place of these."""
    for directory in directories:
        shutil.rmtree(_fresh(directory), ignore_errors=True)


def _replace(fresh: Path, directory: Path) -> None:
    """Move `fresh` to `directory`: a reader sees the old one or the new one, never a mixture."""
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _fresh(directory: Path) -> Path:
    return directory.with_name(directory.name + ".new")


def read_state(directory: Path) -> RunState:
    """Raises RunError when the directory is no checkpoint of this format."""
    try:
        raw = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{directory} is not a checkpoint: state.json cannot be read ({error})") from None
    if raw.pop("format", None) != FORMAT:
        raise RunError(
            f"{directory} has another checkpoint format than {FORMAT}; it was written by another version"
        )
    return RunState(**{**raw, "best": tuple(raw["best"])})


def read_rank(directory: Path, rank: int) -> dict[str, Any]:
    """One worker's own part. Raises RunError when the run had fewer workers than now."""
    path = directory / f"rank-{rank}.pt"
    if not path.exists():
        raise RunError(
            f"{directory} has no state of learner worker {rank}: resume with the same learner.workers"
        )
    # To the CPU: the worker may have another device than the one that wrote it.
    return torch.load(path, map_location="cpu", weights_only=False)
