"""New weights into a running vLLM engine, through its weight-transfer registry
(vllm/distributed/weight_transfer).

Our backend takes a `PackedWeights` as it lies in the object store: each tensor is a view of it and is copied
once, into the model. Layers that vLLM repacks after loading are restored, loaded and repacked one by one (its
layer-wise reload), so the memory behind the model's tensors stays where it is.

Workers find the backend because vLLM imports `WorkerExtension` in each of them, which imports this module,
which registers it. That holds for workers in their own processes (tensor parallelism) too.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from sluice.learner.policy.packed_weights import PackedWeights

BACKEND = "sluice"


class _LoadsWeights(Protocol):
    """What every model of vLLM is, beside a module."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> object:
        """Copy these parameters, by their names in a checkpoint, into the model."""


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """The transfer needs no rendezvous."""


@dataclass
class PackedUpdateInfo(WeightTransferUpdateInfo):
    """One whole update."""

    weights: PackedWeights = field(kw_only=True)
    names: frozenset[str] = field(kw_only=True)  # of the parameters to load; the others are in place


class PackedWeightTransfer(WeightTransferEngine[NoInitInfo, PackedUpdateInfo]):
    """Worker side of an update: start, receive, finish, in this order, between two engine steps."""

    init_info_cls = NoInitInfo
    update_info_cls = PackedUpdateInfo

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Called once, when the engine has started and configured its logging."""
        # It warns on every update of layers with nothing of their own to load, such as rotary embeddings.
        # That no parameter is left out is checked before an update starts.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)

    def start_weight_update(self) -> None:
        """Put the layers back into the form that checkpoints load into."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load an update. Unlike the base class, synchronise only a device that has a queue: the CPU has
        none.
        """
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: PackedUpdateInfo) -> None:
        """Load the tensors of an update. That it is complete has been checked by the sender; a layer of which
        nothing is loaded gets back what it had when the update is finished.
        """
        model = cast(_LoadsWeights, self.model)
        model.load_weights(update_info.weights.tensors(update_info.names))

    def finish_weight_update(self) -> None:
        """Repack the layers for the kernels.

        An output layer tied to the embedding has nothing of its own to load, so the layer-wise reload passes
        it by, and its packed copy (the CPU kernels make one) would stay that of the old weights.
        """
        # vLLM gives this function no types.
        finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
        owned: set[int] = set()
        for layer in self.model.modules():
            weight = layer._parameters.get("weight")
            method = getattr(layer, "quant_method", None)
            if id(weight) in owned and isinstance(method, QuantizeMethodBase):
                method.process_weights_after_loading(layer)
            elif weight is not None:
                owned.add(id(weight))

    def shutdown(self) -> None:
        """Nothing to release."""


class WorkerExtension:
    """Empty; vLLM imports it in every worker, and with it this module. See the module's docstring."""


WeightTransferEngineFactory.register_engine(BACKEND, PackedWeightTransfer)
