"""A batch in slices that fit one forward, what each slice's loss counts, and the means of what the slices
report.
"""

from dataclasses import replace

import torch
import torch.distributed as dist

from sluice.learner.batches.batch import LoggedBatch, tensors_of, to_device
from sluice.learner.objectives.terms.base import Objective
from sluice.learner.reduction import is_distributed
from sluice.learner.scoring.shared_prefix import BranchScores


def micro_batches(batch: LoggedBatch, prompts: int | None, device: torch.device) -> list[LoggedBatch]:
    """Slices of at most `prompts` prompts of like length, each history cut to its slice's longest; on the
    device but for the lengths.
    """
    size = prompts or batch.prompts
    by_length = batch.history_lengths_B.argsort()
    parts = []
    for low in range(0, batch.prompts, size):
        rows = by_length[low : low + size]
        tensors = {name: value[rows] for name, value in tensors_of(batch).items()}
        tensors["history_BT"] = tensors["history_BT"][:, : int(tensors["history_lengths_B"].max())]
        moved = {
            name: to_device(value, device) for name, value in tensors.items() if name != "history_lengths_B"
        }
        parts.append(replace(batch, history_lengths_B=tensors["history_lengths_B"], **moved))
    return parts


def loss_weights(objective: Objective, parts: list[LoggedBatch]) -> torch.Tensor:
    """What each micro-batch's loss counts `[parts]`.

    That is its share of the normalisers of all parts and workers, times the workers, over which DDP and FSDP
    take the mean. It stays on the device, so that nothing waits for it.
    """
    normalisers = torch.stack([objective.normaliser(part) for part in parts])
    total, workers = normalisers.sum(), 1
    if is_distributed():
        workers = dist.get_world_size()
        dist.all_reduce(total)
    return torch.where(total > 0, normalisers * workers / total, 0.0)


def on_every_parameter(loss: torch.Tensor, scores: BranchScores) -> torch.Tensor:
    """`loss`, plus a zero that depends on every score.

    Workers exchange the gradient of a parameter when all of them have one. An objective may leave a score out
    for lack of data (no pair in this micro-batch, no value asked for), and then the workers would wait for
    each other.
    """
    if loss.requires_grad and not is_distributed():
        return loss
    live = [part for part in scores if part is not None and part.requires_grad]
    return loss + sum(0.0 * part.masked_fill(part == -torch.inf, 0.0).sum() for part in live)
