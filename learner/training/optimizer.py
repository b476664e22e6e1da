"""AdamW as the learner uses it: which parameters decay, the schedule, one clipped step, and its state in a
checkpoint.

A sharded parameter (FSDP) is a `DTensor`: its gradient and its moments are shards too, and a checkpoint holds
each worker's own.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sluice.learner.policy.sharding import local_share, sharded_like
from sluice.learner.settings import LearnerSettings


def lr_factor(step: int, settings: LearnerSettings) -> float:
    """Share of the full learning rate at a step (from 0): linear warm-up, then constant or a cosine to 0 at
    the end.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def clip_gradient(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most `max_norm`; returns the norm before, over all shards."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with this worker's shards as plain tensors."""
    state = optimizer.state_dict()
    moments = {
        index: {
            name: local_share(value) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from what `optimizer_state` gave, with the same parameters sharded in the same way.

    The moments are those of the state; the weight decay is that of the optimizer, since a run may be resumed
    with another.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim > 0:  # the count of steps is no moment
                values[name] = sharded_like(parameter, value)


def load_schedule_state(schedule: torch.optim.lr_scheduler.LambdaLR, state: dict[str, Any]) -> None:
    """Go on at the step of the state, with the learning rate that the schedule was made with: a run may be
    resumed with another one. Comes after the optimizer's state.
    """
    rates = list(schedule.base_lrs)
    schedule.load_state_dict({**state, "base_lrs": rates})
    for group, rate, factor in zip(schedule.optimizer.param_groups, rates, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)
