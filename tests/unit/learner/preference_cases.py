"""What the tests of the objectives on logged rewards and preferences share."""

import torch

from sluice.learner.objectives.terms.base import Terms
from sluice.learner.scoring.shared_prefix import BranchScores
from tests.unit.learner.learner_cases import objective_input, random_batch


def scores_of(log_probs_BSL, values_BSL=None, target_BL=None):
    """Scores whose free policy is that of the rollouts unless `target_BL` is given."""
    target_BL = log_probs_BSL[:, 0] if target_BL is None else target_BL
    return BranchScores(log_probs_BSL, target_BL, torch.ones_like(log_probs_BSL).detach(), values_BSL)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def per_branch(*sums):
    """Log-probs [1, S, 3] of one prompt whose branches have these sums, unevenly over the tokens."""
    return double(sums)[None, :, None] * double([0.5, 0.25, 0.25])


def rich_batch(prompts=6, candidates=4, seed=0, **changes):
    """A random batch with everything that only some objectives ask for; rewards and spreads partly
    missing.
    """
    batch = random_batch(prompts=prompts, candidates=candidates, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    rewards_B = 1.0 + torch.randint(5, (prompts,), generator=generator)
    rewards_B[1::3] = torch.nan
    values = {
        "logged_rewards_B": rewards_B,
        "candidate_values_BK": (1 + 4 * torch.rand(prompts, candidates, generator=generator)).masked_fill(
            ~batch.valid_BK, torch.nan
        ),
        "candidate_spread_BK": 0.3 * torch.rand(prompts, candidates, generator=generator),
        "target_spread_B": 0.3 * torch.rand(prompts, generator=generator),
        "candidate_scores_BK": batch.candidate_scores_BK,
    }
    return type(batch)(**(vars(batch) | values | changes))


def means(terms: Terms):
    return {name: (value[0] / value[1]).item() for name, value in terms.metrics.items()}


def assert_nothing_to_learn(objective, batch, scores, start, reference=None):
    """The loss is 0, its normaliser too, and its backward reaches the log-probs with a gradient of zeros."""
    terms = objective(objective_input(batch, scores, start, reference))
    assert objective.normaliser(batch).item() == 0 and terms.loss.item() == 0
    leaves = [scores.log_probs_BSL, *([] if scores.values_BSL is None else [scores.values_BSL])]
    for gradient in torch.autograd.grad(terms.loss, leaves, allow_unused=False):
        assert gradient.abs().max() == 0
