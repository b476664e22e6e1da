"""Products in float32 on a CPU by oneDNN instead of MKL; linear layers by it, with their gradients.

MKL leaves AVX-512 out on AMD's processors, where it is less than half as fast as oneDNN. torch hands float32
products to oneDNN only when it may compute them in bfloat16. On processors without matrix tiles (Intel's AMX)
oneDNN makes no use of that permission and computes in float32. There the permission gives the faster library
and changes no digit. Whether that holds is tried out once per process.

The three products of a linear layer are

    y = x W^T + b        dx = dy W        dW = dy^T x
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

_SMALL = 2**20  # multiplications of a product that MKL is as quick with: a call of oneDNN costs 20 us more


@contextmanager
def onednn_matmul() -> Iterator[None]:
    """While the context lasts, float32 products on the CPU are oneDNN's, if it computes them in float32.

    For products of some size (`_SMALL`), on processors that torch takes oneDNN for. The setting is the
    process's: the first to come changes it and the last to go puts it back, and no thread may compile
    meanwhile (torch's compiler asks for the precision in a way that this setting makes an error).
    """
    _setting.enter()
    try:
        yield
    finally:
        _setting.leave()


class _Setting:
    """torch's permission, as long as somebody is within the context."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                precision, self._before = _precision(), _matmul_backend().fp32_precision
                _matmul_backend().fp32_precision = precision
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _matmul_backend().fp32_precision = self._before


_setting = _Setting()


def _matmul_backend() -> Any:
    """torch's settings of oneDNN's products, which its type stubs leave out."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def onednn_is_exact() -> bool:
    """Whether oneDNN may compute float32 products here."""
    return _precision() == "bf16"


@lru_cache(maxsize=1)
def _precision() -> str:
    """The lowest precision that oneDNN may be allowed without computing in it."""
    backend = _matmul_backend()
    before = backend.fp32_precision
    numbers = torch.rand(2, 4, 128, 128, generator=torch.Generator().manual_seed(0))

    def products(factors: torch.Tensor) -> list[torch.Tensor]:
        first, second = factors
        return [
            first @ second,
            first @ second.transpose(1, 2),
            first.flatten(0, 1) @ second[0].T,
            first[0] @ second[0],
        ]

    try:
        backend.fp32_precision = "bf16"
        computed = products(numbers)
    finally:
        backend.fp32_precision = before
    expected = products(numbers.double())
    exact = all(
        torch.allclose(product.double(), right, rtol=1e-5)
        for product, right in zip(computed, expected, strict=True)
    )
    return "bf16" if exact else "ieee"


def onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias`, x `[..., D]`, weight `[O, D]`: by oneDNN where it may multiply these."""
    if not _takes(x, weight):
        return F.linear(x, weight, bias)
    output: torch.Tensor = (_Linear.apply if torch.is_grad_enabled() else _product)(x, weight, bias)
    return output


def use_onednn_matmul(model: nn.Module) -> None:
    """Let every plain `nn.Linear` of a model compute by `onednn_linear`. Doing it twice does no harm."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]  # this module's alone


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return onednn_linear(x, module.weight, module.bias)


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
    if x.numel() * weight.shape[0] < _SMALL:
        return F.linear(x, weight, bias)
    with onednn_matmul():
        return F.linear(x, weight, bias)


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
