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


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias`, x `[..., D]`, weight `[O, D]`: by oneDNN where it is the one to multiply these."""
    return _Linear.apply(x, weight, bias) if _takes(x, weight) else F.linear(x, weight, bias)


def multiply_by_onednn(model: nn.Module) -> None:
    """Let every plain `nn.Linear` of a model compute by `linear`; once is enough, twice does no harm."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module)


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight, module.bias)


def _takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Some float32 rows on a CPU, outside autocast and compiled graphs."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows_NO = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if wants_x else None,
            _product(rows_NO.t(), x.flatten(0, -2).t()) if wants_weight else None,
            rows_NO.sum(dim=0) if wants_bias else None,
        )
