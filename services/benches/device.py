"""Where a bench computes: on the process's GPU when it has one, and then with a policy that is worth a GPU.

What goes to the CPU stays as it is everywhere: figures of the two kinds of machine do not compare, ratios do.
"""

from typing import Any

import torch

from actors.settings import EngineSettings, TreeEngineSettings
from learner.settings import PolicySettings

GPU_POLICY = {"hidden_size": 512, "layers": 8, "heads": 8, "feed_forward_size": 1536}  # as configs/gpu-cluster.yaml


def device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def policy_settings(**changes: Any) -> PolicySettings:
    """The default policy, or `GPU_POLICY` on a GPU."""
    return PolicySettings(**((GPU_POLICY if torch.cuda.is_available() else {}) | changes))


def dtype() -> str:
    """What engines compute in: float32, or bfloat16 on a GPU."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def vllm_settings(threads: int) -> EngineSettings:
    """Of a vLLM engine."""
    return EngineSettings(threads=threads, dtype=dtype())


def tree_settings(threads: int, **changes: Any) -> TreeEngineSettings:
    """Of a tree engine."""
    return TreeEngineSettings(threads=threads, dtype=dtype(), **changes)


def gpus(share: float) -> float:
    """The share of a GPU that an actor asks Ray for; 0 without one."""
    return share if torch.cuda.is_available() else 0.0
