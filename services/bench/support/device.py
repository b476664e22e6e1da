"""Where a bench computes: on the process's GPU when it has one, and then with a policy that is worth a GPU.

What goes to the CPU stays as it is everywhere: figures of the two kinds of machine do not compare, ratios do.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from sluice.actors.settings import TreeEngineSettings, VllmEngineSettings
from sluice.learner.settings import PolicySettings

GPU_POLICY = {
    "hidden_size": 512,
    "layers": 8,
    "heads": 8,
    "feed_forward_size": 1536,
}  # as configs/gpu-cluster.yaml


def on_gpu() -> bool:
    """This process has a GPU."""
    return torch.cuda.is_available()


def bench_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda" if on_gpu() else "cpu")


def device_clock() -> tuple[str, Callable[[], float]]:
    """What one thread of plain computation is timed by, with its name: a GPU's work takes no processor
    time.
    """
    return ("wall time", time.perf_counter) if on_gpu() else ("processor time", time.process_time)


def policy_settings(**changes: Any) -> PolicySettings:
    """The default policy, or `GPU_POLICY` on a GPU."""
    return PolicySettings(**((GPU_POLICY if on_gpu() else {}) | changes))


def policy_dtype() -> Literal["float32", "bfloat16"]:
    """What engines compute in: float32, or bfloat16 on a GPU."""
    return "bfloat16" if on_gpu() else "float32"


def vllm_settings(threads: int) -> VllmEngineSettings:
    """Of a vLLM engine."""
    return VllmEngineSettings(threads=threads, dtype=policy_dtype())


def tree_settings(threads: int, **changes: Any) -> TreeEngineSettings:
    """Of a tree engine."""
    return TreeEngineSettings(threads=threads, dtype=policy_dtype(), **changes)


def gpu_count(share: float) -> float:
    """The share of a GPU that an actor asks Ray for; 0 without one."""
    return share if on_gpu() else 0.0
