"""The reference policy of KL terms and preferences, as other values of the parameters that are trained.

It shares the module and whatever is frozen with the policy: `in_place` exchanges its values with the
policy's, and back. So it costs one copy of what is trained, which is little with LoRA, where it is the base
without its adapters to begin with; and it is sharded, if the policy is.

    frozen   the policy as it was at the start
    synced   the policy at the last step that was a multiple of `every`
    ema      r <- decay * r + (1 - decay) * policy, after every step

[ours] A step is a batch, however many updates it gets; with LoRA the average is of A and B, not of their
product.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sluice.catalog.errors import RunError
from sluice.learner.policy.sharding import cut_share, local_share
from sluice.learner.settings import EmaReference, ReferenceSettings, SyncedReference


class Reference:
    """The reference's values, on the policy's device, in the policy's dtype."""

    def __init__(
        self, model: nn.Module, settings: ReferenceSettings, start: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Begin as `model` is, or with the values that `start` gives its trained parameters by name."""
        self._settings = settings
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._values = {
            name: (local_share(p) if start is None else cut_share(p, start[name].detach())).clone()
            for name, p in self._parameters.items()
        }
        self._version = 0

    @property
    def version(self) -> int:
        """The optimizer step that last changed the reference; 0 is the start."""
        return self._version

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """This worker's share of every value, by the name of the parameter."""
        return self._values

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts the model is the reference, to the bit, and afterwards it is the policy again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Do what the settings say after optimizer step `step`, counted from 1."""
        match self._settings:
            case SyncedReference(every=every) if step % every == 0:
                for name, parameter in self._parameters.items():
                    self._values[name].copy_(local_share(parameter))
                self._version = step
            case EmaReference(decay=decay):
                for name, parameter in self._parameters.items():
                    self._values[name].lerp_(local_share(parameter), 1 - decay)
                self._version = step

    def state_dict(self) -> dict[str, Any] | None:
        """This worker's share, to go on from; None for a frozen reference, which the start gives again."""
        if self._settings.type == "frozen":
            return None
        return {"type": self._settings.type, "version": self._version, "values": self._values}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            RunError: that was a reference of another type.
        """
        written = "frozen" if state is None else state["type"]
        if written != self._settings.type:
            raise RunError(
                f"the checkpoint was written with learner.reference.type {written}, and this run has "
                f"{self._settings.type}: resume with the same"
            )
        if state is not None:
            self._version = state["version"]
            for name, value in self._values.items():
                value.copy_(state["values"][name])

    @torch.no_grad()
    def _exchange(self) -> None:
        # By value: FSDP gathers from the memory of a share, so the policy's tensors have to stay where they
        # are.
        for name, parameter in self._parameters.items():
            mine, theirs = self._values[name], local_share(parameter)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
