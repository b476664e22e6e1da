"""LoRA: low-rank adapters (peft) beside frozen weights, and the plain weights that they amount to.

An adapted linear layer computes W x + (alpha / rank) B A x with W frozen; B starts at zero, so that the
policy starts as its base to the bit. Norms and biases stay frozen. The embeddings of the semantic-ID tokens
are usually new and have to be learned: `train_tokens` trains those rows, and only those, in place of the
base's. An output embedding that is tied to the input embedding uses the same rows; one of its own has its own
rows trained.

Engines, checkpoints and the judge know nothing of adapters. They get W + (alpha / rank) B A under the names
that the parameters had before, computed beside the weights that are trained.

Imported only when a run has `sluice.learner.policy.lora`: peft takes seconds to import.
"""

from collections.abc import Iterator
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from transformers import PreTrainedModel

from sluice.catalog.errors import PolicyError
from sluice.catalog.tokens import TokenLayout
from sluice.learner.policy.sharding import gather_whole
from sluice.learner.settings import LoraSettings

_ADAPTER = "default"
_OURS = ("lora_A", "lora_B", "trainable_tokens_delta")


def add_adapters(model: PreTrainedModel, settings: LoraSettings, layout: TokenLayout, seed: int) -> None:
    """Freeze `model` and put adapters into it, with matrices A that depend on `seed` alone.

    Raises:
        PolicyError: the model has no linear layer by the name of a target, or something else would be
            adapted.
    """
    _check_targets(model, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=settings.dropout,
        target_modules="all-linear" if settings.targets is None else list(settings.targets),
        trainable_token_indices=_trained_rows(model, layout) if settings.train_tokens else None,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    others = {type(part.get_base_layer()).__name__ for part in _adapted(model)} - {"Linear"}
    if others:
        raise PolicyError(
            f"learner.lora adapts nn.Linear alone, and {type(model).__name__} computes with "
            f"{', '.join(sorted(others))}: leave learner.lora out"
        )


def drop_in_adapters(model: nn.Module, active: bool) -> None:
    """Switch the adapters' own dropout on or off, whatever the mode of the rest of the model."""
    for layer in _adapted(model):
        layer.lora_dropout.train(active)


def plain_shapes(model: nn.Module) -> Iterator[tuple[str, torch.Size, torch.dtype]]:
    """Name, shape and dtype of every parameter of the policy without adapters, in their order."""
    for name, parameter in model.named_parameters():
        if not _is_adapter(name):
            yield _plain(name), parameter.shape, parameter.dtype


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter with its adapter merged in, whole, under its name in the policy without adapters.

    They come one at a time; the trained weights stay as they are. With a sharded model every worker has to
    take them all, since each is gathered from all workers.
    """
    owners = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if not _is_adapter(name):
            value = gather_whole(parameter)
            owner, _, kind = name.partition(".base_layer.")
            yield _plain(name), merge_adapters(owners[owner], value) if kind == "weight" else value


def merge_adapters(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The weight that the adapted `layer` amounts to, in the shape of its base's `weight`."""
    if isinstance(layer, LoraLayer):
        first, second = (cast(nn.Linear, part[_ADAPTER]) for part in (layer.lora_A, layer.lora_B))
        a_RI, b_OR = gather_whole(first.weight), gather_whole(second.weight)
        merged: torch.Tensor = weight + layer.scaling[_ADAPTER] * (b_OR @ a_RI)
        return merged
    assert isinstance(layer, TrainableTokensLayer), f"no merging for {type(layer).__name__}"
    rows = torch.tensor(layer.token_indices[_ADAPTER], device=weight.device)
    return weight.index_copy(0, rows, gather_whole(layer.trainable_tokens_delta[_ADAPTER]))


def _check_targets(model: PreTrainedModel, settings: LoraSettings) -> None:
    linear = {
        name.rpartition(".")[2]: part for name, part in model.named_modules() if isinstance(part, nn.Linear)
    }
    wrong = [target for target in settings.targets or () if target not in linear]
    if wrong or not linear:
        known = ", ".join(sorted(linear)) or "none, so it cannot be trained with LoRA"
        raise PolicyError(
            f"learner.lora.targets: {type(model).__name__} has no linear layer named "
            f"{', '.join(wrong) or 'anything'}; it has {known}"
        )
    if model.get_output_embeddings() in [linear[target] for target in settings.targets or ()]:
        raise PolicyError(
            "learner.lora.targets: the output embedding takes no adapter, since it may be tied to the input "
            "embedding; leave it out, and set train_tokens to train the semantic-ID tokens"
        )


def _trained_rows(model: PreTrainedModel, layout: TokenLayout) -> dict[str, list[int]]:
    """The ids of the semantic-ID tokens, by the name of each embedding that has rows of its own for them."""
    levels = zip(layout.level_offsets, layout.level_sizes, strict=True)
    tokens = [token for first, size in levels for token in range(first, first + size)]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    owners = [embedding] if head.weight is embedding.weight else [embedding, head]
    if getattr(head, "bias", None) is not None:
        raise PolicyError(
            f"the output embedding of {type(model).__name__} has a bias, which peft drops where it trains "
            "tokens; set learner.lora.train_tokens to false"
        )
    return {name: tokens for name, part in model.named_modules() if any(part is owner for owner in owners)}


def _adapted(model: nn.Module) -> list[LoraLayer]:
    return [part for part in model.modules() if isinstance(part, LoraLayer)]


def _is_adapter(name: str) -> bool:
    return any(part in name.split(".") for part in _OURS)


def _plain(name: str) -> str:
    return name.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
