"""How the processes of a run are set up: what they start with, and what those that never idle do once they
are warm.
"""

import contextlib
import gc
import os
from collections.abc import Mapping
from pathlib import Path

# How glibc's malloc keeps memory. Left to itself it gives the memory of freed tensors back to the system,
# above all in a thread that is not the process's first, where Ray runs engines and Ray Train runs the
# learner; the next step gets it back page by page. Read when a process starts, so it has to be in its
# environment; other C libraries ignore it.
ALLOCATOR = {
    # one heap for all threads; the heaps of other threads are taken apart as they empty
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),  # bytes at its end that are kept
    "MALLOC_MMAP_THRESHOLD_": str(
        2**25
    ),  # bytes from which an allocation is a mapping of its own: the most there is
}

# Where libraries keep what they compile (torch.compile of the learner, vLLM graphs): by themselves under the
# home directory and /tmp of each node; on a volume that outlives the nodes, compiling is done once.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT")


def job_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Variables of every process of a job that is submitted from a process with the variables `own`."""
    return ALLOCATOR | {name: own[name] for name in CACHES if name in own}


def raise_gc_threshold() -> None:
    """Look for reference cycles after 50,000 new objects instead of 700, and not among those there are now.

    For a process that has built what it works with; call it again when that has been replaced. A step of an
    engine makes thousands of objects that live for a few steps, and next to no cycles: at Python's own
    threshold it is searched seven times a step, 2% of a rollout actor.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def lower_thread_priority(but: int | None = None) -> None:
    """Let the threads of this process, and what they start, not interrupt a thread that computes.

    A thread that wakes up on a core (for a message, say) takes it from the one that runs there, which then
    has to fill its caches again. That happened to an engine ten times a step, although another core was free;
    where all others are Linux's SCHED_BATCH, which wait for the end of its time slice (3 ms) where no core is
    free, a third as often. Processes inherit the policy: a head that gives way starts actors that do. `but`
    is the thread (native id) that computes, whose policy is the ordinary one. Where a system has no such
    policy or does not allow it, all stays as it is.
    """
    tasks = Path("/proc/self/task")
    if not hasattr(os, "SCHED_BATCH") or not tasks.is_dir():
        return
    for thread in (int(task.name) for task in tasks.iterdir()):
        _schedule(thread, os.SCHED_OTHER if thread == but else os.SCHED_BATCH)


def lower_own_priority() -> None:
    """`lower_thread_priority` for the thread that calls, and the threads that it starts."""
    if hasattr(os, "SCHED_BATCH"):
        _schedule(0, os.SCHED_BATCH)


def _schedule(thread: int, policy: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or it is not allowed
        os.sched_setscheduler(thread, policy, os.sched_param(0))
