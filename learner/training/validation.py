"""Validation of a policy under training, by all workers together, each on its share of the examples."""

import numpy as np
import torch.distributed as dist

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.evaluation.evaluate import UserResults, evaluate_policy
from sluice.learner.settings import EvaluationSettings
from sluice.learner.training.step import LearnerStep


def validate_policy(
    learner: LearnerStep,
    vocabulary: Vocabulary,
    dataset: Dataset,
    examples: Examples,
    settings: EvaluationSettings,
) -> UserResults:
    """What decoding gives for `examples`, each of them once, on every worker; all call it together."""
    together = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    mine = equal_share(examples, rank, world)
    part = learner.run(lambda: evaluate_policy(learner.model, vocabulary, dataset, mine, settings))
    if world == 1:
        return part
    parts = [part] * world  # each is replaced by its worker's
    dist.all_gather_object(parts, part)
    return UserResults.concatenate(parts)  # which counts what fills up the shares once


def equal_share(examples: Examples, rank: int, world: int) -> Examples:
    """Every `world`-th example from `rank` on, filled up with the first so that all shares have one size: the
    workers of a sharded policy have to make the same number of forwards.
    """
    rows = np.arange(rank, len(examples), world)
    size = -(-len(examples) // world)
    rows = np.pad(rows, (0, size - len(rows)))
    return Examples(users=examples.users[rows], positions=examples.positions[rows])
