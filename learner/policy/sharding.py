"""A policy that is sharded over the workers with FSDP2 (`torch.distributed.fsdp.fully_shard`).

Every decoder layer is one unit, and what is left (embeddings, final norm, value head) another. A unit is
gathered for its own forward and backward and freed at once, so a worker holds one whole layer at a time.
Outside of that a parameter is a `DTensor`, of which the worker has a share of the rows. Gradients arrive
reduced, as shares, with each micro-batch, so that accumulating them needs no memory for whole gradients.

What must see the parameters whole runs as a forward of the root: `ShardedScorer.run`.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from sluice.catalog.errors import PolicyError
from sluice.learner.scoring.shared_prefix import BranchScorer, BranchScores

Result = TypeVar("Result")


class ShardedScorer(nn.Module):
    """The root of the units: a scorer, and any other use of its model between `fully_shard`'s hooks."""

    def __init__(self, scorer: BranchScorer) -> None:
        """Use `shard`, which also cuts the parameters."""
        super().__init__()
        self.scorer = scorer

    def forward(self, *inputs: object) -> BranchScores:
        """The scorer's scores, none of them a view of another: hooks of the backward hang on each."""
        scores: BranchScores = self.scorer(*inputs)
        return BranchScores(
            scores.log_probs_BSL.clone(),
            scores.target_log_probs_BL.clone(),
            scores.entropy_BSL.clone(),
            None if scores.values_BSL is None else scores.values_BSL.clone(),
        )

    def run(self, function: Callable[[], Result]) -> Result:
        """Call `function`, which may call any part of the model.

        All workers call it together, and each has to make the same number of forwards, since every forward of
        a layer is an exchange.
        """
        return function()


def shard_scorer(scorer: BranchScorer, device: torch.device) -> ShardedScorer:
    """Shard the scorer's parameters over all workers, each on its `device`.

    The scorer may still be on the CPU.

    Raises:
        PolicyError: the decoder has no list of layers to shard by.
    """
    layers = getattr(scorer.model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise PolicyError(
            f"{type(scorer.model).__name__} cannot be sharded: its decoder has no list of layers named "
            "`layers`; set learner.sharding to ddp"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    root = ShardedScorer(scorer)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # The root is given back too after a forward: a reference changes the shares between two of them.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(root, "run")
    return root


def local_share(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's share, in the same memory, without gradient; the tensor itself when it is not sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor without gradient, gathered from all workers when it is sharded: all must call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(parameter: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """A tensor shaped and sharded as `parameter` is, of which this worker has `share`."""
    if not isinstance(parameter, DTensor):
        return share
    return DTensor.from_local(
        share,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def cut_share(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This worker's share of a whole `value` that all workers have, cut as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements).to_local()
