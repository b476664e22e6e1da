"""The plain policy out of whatever is trained: shards gathered, adapters merged, names as they were.

That is what engines and checkpoints get. Parameters come one at a time, so that no worker holds more than one
of them whole unless it keeps them. With a sharded policy all workers take part in gathering each.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sluice.learner.policy.policy import Policy
from sluice.learner.policy.sharding import gather_whole


class PlainWeights:
    """The weights of a policy under training, by the names of the plain policy."""

    def __init__(self, model: nn.Module, adapted: bool) -> None:
        """Read `model` as it is at each call of `tensors`.

        `adapted`: it has the adapters of `sluice.learner.policy.lora`.
        """
        self._model = model
        self._adapted = adapted

    def shapes(self) -> list[tuple[str, torch.Size, torch.dtype]]:
        """Name, whole shape and dtype of every parameter, in the order of `tensors`; tied weights once."""
        if self._adapted:
            from sluice.learner.policy.lora import plain_shapes

            return list(plain_shapes(self._model))
        return [
            (name, parameter.shape, parameter.dtype) for name, parameter in self._model.named_parameters()
        ]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every parameter, whole, on the policy's device."""
        if self._adapted:
            from sluice.learner.policy.lora import plain_parameters

            yield from (value for _, value in plain_parameters(self._model))
        else:
            yield from (gather_whole(parameter) for parameter in self._model.parameters())

    def join_gathering(self) -> None:
        """Take part in the gathering, if there is any, and keep nothing."""
        if any(isinstance(parameter, DTensor) for parameter in self._model.parameters()):
            for _ in self.tensors():
                pass

    def policy(self, like: Policy) -> Policy:
        """A new policy on the CPU with these weights, to save; `like` gives architecture and tokenizer."""
        names = [name for name, _, _ in self.shapes()]
        values = dict(zip(names, (value.to("cpu", copy=True) for value in self.tensors()), strict=True))
        with torch.device("meta"):
            model = type(like.model)(like.model.config)
        model.load_state_dict(values, strict=False, assign=True)
        model.tie_weights()
        assert not any(parameter.is_meta for parameter in model.parameters()), "a parameter has no value"
        return Policy(model=model.eval(), tokenizer=like.tokenizer, layout=like.layout)
