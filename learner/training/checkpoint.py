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
    sums-<r>.json written last by each worker: sha256 of its files, and how many workers wrote one

Ray Train moves the directories and keeps the last ones. The one with the best validation is kept here, where
every worker adds its part. `sluice.learner.training.recovery` chooses the one to go on from. Checkpoints of
format 3 have no sums, those of format 2 have `rank-<r>.pt` too; both are still read.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sluice.catalog.errors import RunError
from sluice.catalog.files import (
    digest_files,
    directory_aside,
    find_damage,
    remove_leftovers,
    replace_directory,
    sha256_of,
    write_atomically,
)
from sluice.learner.policy.policy import Policy, save_policy
from sluice.learner.training.state_files import has_state, load_state, save_state

FORMAT = 4
_READABLE = (2, 3, FORMAT)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What every worker needs to go on."""

    step: int  # optimizer steps done
    version: int  # weight version of the policy in this checkpoint
    best: tuple[float, float]  # best validation so far (`exposure.choosing_score`)
    since_best: int = 0  # validations since then; earlier releases do not say
    source: dict[str, Any] | None  # snapshot of the batch source; None: it begins anew
    metrics_bytes: int  # length of the metrics file
    journal_bytes: int = 0  # of the journal; earlier releases have none


def write_checkpoint(directory: Path, state: RunState, policy: Policy) -> None:
    """Write the parts that rank 0 owns; `policy` is the plain policy."""
    save_policy(policy, directory / "policy")
    write_atomically(directory / "state.json", json.dumps({"format": FORMAT, **asdict(state)}))


def write_rank(directory: Path, rank: int, state: dict[str, Any]) -> None:
    """Write one worker's own part."""
    save_state(state, directory / f"rank-{rank}")


def seal_part(directory: Path, rank: int, workers: int) -> None:
    """Write the sums of one worker's files, once they are all there.

    Args:
        directory: of these files alone.
        rank: of the worker.
        workers: how many write a part of this checkpoint.
    """
    sums = {"workers": workers, "files": digest_files(directory)}
    write_atomically(_sums_file(directory, rank), json.dumps(sums, indent=1))


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, named with the file; None when it is whole.

    One of an earlier format has no sums: of it only `state.json` is read.
    """
    sealed = len(list(checkpoint.glob("sums-*.json")))
    if sealed == 0:
        return _fault_without_sums(checkpoint)
    faults = (_fault_of_part(checkpoint, rank, sealed) for rank in range(sealed))
    return next((fault for fault in faults if fault), None)


def _fault_without_sums(checkpoint: Path) -> str | None:
    try:
        written = _read_raw_state(checkpoint)["format"]
    except RunError as error:
        return str(error)
    return "sums-0.json is missing" if written == FORMAT else None


def _fault_of_part(checkpoint: Path, rank: int, sealed: int) -> str | None:
    place = _sums_file(checkpoint, rank)
    try:
        sums = json.loads(place.read_text())
        workers, digests = sums["workers"], dict(sums["files"])
    except FileNotFoundError:
        return f"{place.name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{place.name} cannot be read ({type(error).__name__}: {error})"
    if workers != sealed:
        return f"{place.name} tells of {workers} workers, and {sealed} of them had written their part"
    return find_damage(checkpoint, digests)


def rewrite_state(checkpoint: Path, state: RunState) -> None:
    """Give a checkpoint another state, and its sums with it."""
    written = _read_raw_state(checkpoint)["format"]
    write_atomically(checkpoint / "state.json", json.dumps({"format": written, **asdict(state)}))
    place = _sums_file(checkpoint, 0)
    if place.exists():
        sums = json.loads(place.read_text())
        sums["files"]["state.json"] = sha256_of(checkpoint / "state.json")
        write_atomically(place, json.dumps(sums, indent=1))


def _sums_file(directory: Path, rank: int) -> Path:
    return directory / f"sums-{rank}.json"


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
    _copy_policy(best, policy_directory)


def settle_best(best: Path, policy_directory: Path) -> None:
    """After a process died: remove what it had begun to write in the place of these, put back what it had
    moved away, and let the policy be the best checkpoint's again.
    """
    shutil.rmtree(_fresh(best), ignore_errors=True)
    for directory in (best, policy_directory):
        remove_leftovers(directory)
    whole = best.exists() and find_fault(best) is None
    if whole and digest_files(policy_directory) != digest_files(best / "policy"):
        _copy_policy(best, policy_directory)


def _copy_policy(checkpoint: Path, policy_directory: Path) -> None:
    with directory_aside(policy_directory) as fresh:
        shutil.copytree(checkpoint / "policy", fresh, dirs_exist_ok=True)


def _fresh(directory: Path) -> Path:
    """Where all workers lay their parts of the next one."""
    return directory.with_name(directory.name + ".new")


def read_state(directory: Path) -> RunState:
    """Raises RunError when the directory is no checkpoint of this format."""
    raw = _read_raw_state(directory)
    del raw["format"]
    return RunState(**{**raw, "best": tuple(raw["best"])})


def _read_raw_state(directory: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{directory} is not a checkpoint: state.json cannot be read ({error})") from None
    if (written := raw.get("format")) not in _READABLE:
        raise RunError(
            f"{directory} has another checkpoint format than {' or '.join(map(str, _READABLE))}: {written}; "
            f"resume it with the version that wrote it"
        )
    return raw


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
