"""One group for hand computation, that the tests of the objectives share."""

import torch

from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.scoring.shared_prefix import BranchScores
from tests.unit.learner.learner_cases import objective_input, one_group

A = 0.70705678  # advantages of rewards 1 and 3 are -A and +A: 1 / (sqrt(2) + 1e-4)
RATIOS = torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)


def scores_of(log_probs_BSL, target_BL=None):
    target_BL = log_probs_BSL[:, 0] if target_BL is None else target_BL
    return BranchScores(log_probs_BSL, target_BL, torch.ones_like(log_probs_BSL).detach())


def pair(**changes):
    """K = 2 with rewards 1 and 3; the learner gives every token -1, and its ratios to the engine are
    `RATIOS`.
    """
    values = {
        "candidates_BKL": torch.tensor([[[3, 7, 11], [4, 7, 10]]]),
        "candidate_items_BK": torch.tensor([[1, 2]]),
        "candidate_scores_BK": torch.tensor([[1.0, 3.0]], dtype=torch.float64),
        "behaviour_log_probs_BKL": (-1 - RATIOS.log()).expand(1, 2, 3),
        "target_scores_B": torch.tensor([9.0], dtype=torch.float64),
    }
    return one_group(**(values | changes)), torch.full((1, 3, 3), -1.0, dtype=torch.float64)


def grpo_loss(settings, batch, log_probs, start=None, reference=None):
    return GrpoLoss(settings)(
        objective_input(
            batch, scores_of(log_probs), scores_of(log_probs if start is None else start), reference
        )
    ).loss
