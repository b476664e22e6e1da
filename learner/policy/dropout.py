"""Dropout for Hugging Face causal LMs whose architecture has none outside attention.

Applied to the input embeddings and to what attention and feed-forward add to the residual stream, through
forward hooks that act in training mode only, so the saved model stays the plain architecture.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sluice.catalog.errors import PolicyError

# Names of the layers that write to the residual stream: Llama, Qwen and Mistral style, then GPT-2 style.
_RESIDUAL_WRITERS = ("o_proj", "down_proj", "c_proj")


@contextmanager
def dropout_enabled(model: PreTrainedModel, *, residual: float, embedding: float) -> Iterator[None]:
    """Drop with these probabilities while the context lasts: block outputs, and input embeddings.

    Raises:
        PolicyError: the architecture has no layer by a name known to write to the residual stream.
    """
    writers = [
        module for name, module in model.named_modules() if name.rpartition(".")[2] in _RESIDUAL_WRITERS
    ]
    if residual > 0 and not writers:
        raise PolicyError(
            f"dropout {residual} cannot be applied to a {type(model).__name__}: it has no layer named "
            f"{', '.join(_RESIDUAL_WRITERS)}; set dropout to 0"
        )
    handles = [_drop(module, residual) for module in writers if residual > 0]
    if embedding > 0:
        handles.append(_drop(model.get_input_embeddings(), embedding))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(module: nn.Module, rate: float) -> RemovableHandle:
    def hook(module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, rate, module.training)

    return module.register_forward_hook(hook)
