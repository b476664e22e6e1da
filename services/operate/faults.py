"""The faults that `sluice chaos` injects, and the processes that they hit.

A process is found by the name that Ray gives it, among those that descend from this one: a cluster that this
process started has no others.
"""

import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

DRIVER = "the driver"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind."""

    name: str
    victim: str = ""  # beginning of the name that Ray gives the process; "": none has to be replaced
    signal: int = 0
    ranker: str = ""  # what the ranker is told to do wrong
    damages: bool = False  # the newest checkpoint too


@dataclass(frozen=True, kw_only=True)
class Injury:
    """What a fault did."""

    victim: psutil.Process | None = None  # has to be replaced
    damaged: Path | None = None  # a checkpoint


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="kill rollout", victim="RolloutActor", signal=signal.SIGKILL),
        Fault(name="stop rollout", victim="RolloutActor", signal=signal.SIGSTOP),
        Fault(name="kill ranker", victim="RankerActor", signal=signal.SIGKILL),
        Fault(name="stop ranker", victim="RankerActor", signal=signal.SIGSTOP),
        Fault(name="ranker raises", ranker="raise"),
        Fault(name="ranker crashes", victim="RankerActor", ranker="crash"),
        Fault(name="ranker is slow", ranker="slow"),
        Fault(name="kill queue", victim="QueueActor", signal=signal.SIGKILL),
        Fault(name="stop queue", victim="QueueActor", signal=signal.SIGSTOP),
        Fault(name="kill weight board", victim="(Kept)WeightBoard", signal=signal.SIGKILL),
        Fault(name="kill learner", victim="RayTrainWorker", signal=signal.SIGKILL),
        Fault(name="kill controller", victim="TrainController", signal=signal.SIGKILL),
        Fault(name="kill driver", victim=DRIVER, signal=signal.SIGKILL),
        Fault(name="damage checkpoint", victim="RayTrainWorker", signal=signal.SIGKILL, damages=True),
    )
}


def find_processes(victim: str) -> list[psutil.Process]:
    """The processes of a name, oldest first. `(Kept)X` stands for `X` and `KeptX`."""
    names = (
        tuple(prefix + victim.removeprefix("(Kept)") for prefix in ("", "Kept"))
        if victim.startswith("(Kept)")
        else (victim,)
    )
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith(tuple(f"ray::{name}" for name in names)):
                found.append((process.create_time(), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def inject(fault: Fault, pick: Callable[[int], int], control: Path, kept: Path) -> Injury:
    """Do it. The driver is left to whoever started it.

    Args:
        fault: what to do.
        pick: one of so many processes, from 0.
        control: of the faulty ranker.
        kept: Ray Train's directory of checkpoints.

    Raises:
        LookupError: there is no such process, or no checkpoint, at the moment.
    """
    processes = [] if fault.victim in ("", DRIVER) else find_processes(fault.victim)
    if fault.victim not in ("", DRIVER) and not processes:
        raise LookupError(f"no process of the name {fault.victim}")
    damaged = damage_newest(kept) if fault.damages else None
    if fault.ranker:
        control.write_text(fault.ranker)
    victim = processes[pick(len(processes))] if processes else None
    if victim is not None and fault.signal:
        victim.send_signal(fault.signal)
    return Injury(victim=victim, damaged=damaged)


def damage_newest(kept: Path) -> Path:
    """Flip the last bit of the policy in the newest checkpoint; returns the checkpoint.

    Raises:
        LookupError: there are not two checkpoints, so that none would be left.
    """
    files = sorted(kept.glob("checkpoint_*/policy/model.safetensors"))
    if len(files) < 2:
        raise LookupError("no two checkpoints yet")
    content = bytearray(files[-1].read_bytes())
    content[-1] ^= 1
    files[-1].write_bytes(content)
    return files[-1].parents[1]
