"""The learner's checkpoint: a directory from which a run goes on as if nothing had happened.

    policy/       the policy as a Hugging Face directory, loadable as it is by transformers and vLLM: the
                  average of the weights where there is one
    state.json    step, weight version, best validation so far, the source's snapshot (feed cursor,
                  outstanding leases, counters), bytes of the metrics file
    rank-<r>.safetensors, rank-<r>.json
                  of each worker: optimizer, scheduler and random states, a synced or averaged reference, the
                  average, and the weights that policy/ does not hold as they are trained: value head,
                  adapters (policy/ has them merged in), the worker's shares of a sharded policy, all of them
                  where policy/ is an average

Ray Train moves the directories and keeps the last ones. The one with the best validation is kept here, where
every worker adds its part. A checkpoint of format 2 has `rank-<r>.pt` instead, and is still read.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sluice.catalog.errors import RunError
from sluice.catalog.files import directory_aside, remove_leftovers, replace_directory, write_atomically
from sluice.learner.policy.policy import Policy, save_policy
from sluice.learner.training.state_files import has_state, load_state, save_state

FORMAT = 3
_READABLE = (2, FORMAT)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What every worker needs to go on."""

    step: int  # optimizer steps done
    version: int  # weight version of the policy in this checkpoint
    best: tuple[float, float]  # best validation so far (`exposure.choosing_score`)
    since_best: int = 0  # validations since then; earlier releases do not say
    source: dict[str, Any]  # snapshot of the batch source
    metrics_bytes: int  # length of the metrics file
    journal_bytes: int = 0  # of the journal; earlier releases have none


def write_checkpoint(directory: Path, state: RunState, policy: Policy) -> None:
    """Write the parts that rank 0 owns; `policy` is the plain policy."""
    save_policy(policy, directory / "policy")
    write_atomically(directory / "state.json", json.dumps({"format": FORMAT, **asdict(state)}))


def write_rank(directory: Path, rank: int, state: dict[str, Any]) -> None:
    """Write one worker's own part."""
    save_state(state, directory / f"rank-{rank}")


def add_to_best(part: Path, best: Path) -> None:
    """Lay one worker's files beside the best checkpoint so far; `replace_best` follows when all have done
    so.
    """
    shutil.copytree(part, _fresh(best), dirs_exist_ok=True)


def replace_best(best: Path, policy_directory: Path) -> None:
    """What `add_to_best` laid down becomes the best checkpoint, and its policy the one at
    `policy_directory`.
    """
    replace_directory(_fresh(best), best)
    with directory_aside(policy_directory) as fresh:
        shutil.copytree(best / "policy", fresh, dirs_exist_ok=True)


def discard_unfinished(*directories: Path) -> None:
    """Remove what a process that died had begun to write in the place of these."""
    for directory in directories:
        shutil.rmtree(_fresh(directory), ignore_errors=True)
        remove_leftovers(directory)


def _fresh(directory: Path) -> Path:
    """Where all workers lay their parts of the next one."""
    return directory.with_name(directory.name + ".new")


def read_state(directory: Path) -> RunState:
    """Raises RunError when the directory is no checkpoint of this format."""
    try:
        raw = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{directory} is not a checkpoint: state.json cannot be read ({error})") from None
    if (written := raw.pop("format", None)) not in _READABLE:
        raise RunError(
            f"{directory} has another checkpoint format than {' or '.join(map(str, _READABLE))}: {written}; "
            f"resume it with the version that wrote it"
        )
    return RunState(**{**raw, "best": tuple(raw["best"])})


def read_rank(directory: Path, rank: int) -> dict[str, Any]:
    """One worker's own part. Raises RunError when the run had fewer workers than now."""
    place = directory / f"rank-{rank}"
    if has_state(place):
        state: dict[str, Any] = load_state(place)
        return state
    of_format_2 = directory / f"rank-{rank}.pt"
    if of_format_2.is_file():
        # To the CPU, as `load_state`. Tensors, containers and numbers alone: no code of the file is run.
        state = torch.load(of_format_2, map_location="cpu", weights_only=True)
        return state
    raise RunError(f"{directory} has no state of learner worker {rank}: resume with the same learner.workers")
