"""Means over the micro-batches of a step and the workers of a run."""

import torch
import torch.distributed as dist


def mean_of(values: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    """The metric (sum, count), float64 `[2]`, of the mean of `values` over the entries where `where` holds.

    `where` has the shape of `values`; None: all entries.
    """
    values = values.detach().double()
    if where is None:
        return torch.stack([values.sum(), values.new_full((), values.numel())])
    return torch.stack([torch.where(where, values, 0.0).sum(), where.sum().double()])


def reduce_means(totals: dict[str, torch.Tensor]) -> dict[str, float]:
    """The means of (sum, count) metrics over all workers.

    All metrics take one exchange and one copy to the host together.
    """
    names = sorted(totals)
    table = torch.stack([totals[name] for name in names])
    if is_distributed():
        dist.all_reduce(table)
    return dict(zip(names, (table[:, 0] / table[:, 1]).tolist(), strict=True))


def is_distributed() -> bool:
    """Whether this process is one of several workers that exchange gradients."""
    return dist.is_available() and dist.is_initialized()
