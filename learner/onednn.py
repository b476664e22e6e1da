"""Linear layers in float32 on a CPU, computed by oneDNN instead of MKL, with their gradients.

torch takes oneDNN for half precision only. In float32 it multiplies by MKL, which leaves AVX-512 out on AMD's
processors: less than half as fast there. The three products of a layer are

    y = x W^T + b        dx = dy W        dW = dy^T x
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN is the one to multiply these: some float32 rows on a CPU, outside autocast and compiled graphs."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` without a gradient, of tensors that oneDNN takes: x `[..., D]`, weight `[O, D]`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def multiply_by_onednn(model: nn.Module) -> None:
    """Let every plain `nn.Linear` of a model compute by oneDNN wherever it can; once is enough, twice does no harm."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module)


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if takes(x, module.weight):
        return _Linear.apply(x, module.weight, module.bias)
    return F.linear(x, module.weight, module.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows_NO = gradient.flatten(0, -2)
        return (
            linear(gradient, weight.t()) if wants_x else None,
            linear(rows_NO.t(), x.flatten(0, -2).t()) if wants_weight else None,
            rows_NO.sum(dim=0) if wants_bias else None,
        )
