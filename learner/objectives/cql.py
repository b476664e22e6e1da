"""Conservative Q-learning (CQL, arXiv 2006.04779) on a contextual bandit whose actions are items.

    L = mean over rewarded prompts of alpha * [ logsumexp_a Q(x, a) - Q(x, y*) ] + (Q(x, y*) - r)^2

r is the logged reward, y* the logged item; no importance weights of the logs. Definition:
docs/algorithms.md, CQL. The Q-function is the policy itself [ours]:

    Q(x, a) = V(x) + scale * log pi(a | x)

with V the value head at the prompt and log pi the sum over the item's tokens under the rollouts'
distribution. Any Q-function can be written so, and decoding pi greedily is greedy in Q. Over all token
sequences logsumexp_a Q is exactly V at scale 1.

The logsumexp is over items. The logged item is in it exactly, the others by importance sampling [ours]:

    logsumexp ~ log( exp Q(y*) + (1/K) sum over valid candidates o_i != y* of exp Q(o_i) / pi_b(o_i) )

pi_b being the engine's recorded probabilities. A hallucination is no item: it adds nothing and still counts
in K. The sum is unbiased where pi_b reaches every item; its logarithm is too low by about half the sum's
squared coefficient of variation, which falls as 1/K (Jensen), and never below Q(y*), so that the conservative
term is never negative. For groups drawn without replacement 1/(K pi_b) becomes one over the inclusion
probability. Beams are no sample, and refused.
"""

import math

import torch

from sluice.catalog.errors import ConfigError
from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.objectives.settings.logged import CqlObjective
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput, Terms, nll_per_prompt
from sluice.learner.objectives.terms.logged import logged_rewards, mean_over
from sluice.learner.reduction import mean_of


def sampling_log_weights(batch: GroupBatch) -> torch.Tensor:
    """log of what each candidate stands for `[B, K]` in a sum over the items other than the logged one; -inf:
    nothing.

    Raises:
        ConfigError: the candidates are beams, whose chance of being there is not known.
    """
    if batch.inclusion_log_probs_BK is not None:
        log_weights_BK = -batch.inclusion_log_probs_BK
    elif not batch.decoding.is_drawn:
        raise ConfigError(
            "cql sums over items by sampling, and beams are no sample: set rollout.decode.kind to one that "
            "draws its candidates"
        )
    else:
        log_weights_BK = -batch.behaviour_log_probs_BKL.sum(dim=-1) - math.log(batch.valid_BK.shape[1])
    return log_weights_BK.masked_fill(~batch.valid_BK | batch.hit_BK, -torch.inf)


def log_sum_items(
    logged_B: torch.Tensor, sampled_BK: torch.Tensor, log_weights_BK: torch.Tensor
) -> torch.Tensor:
    """log( exp Q(y*) + sum_i weight_i exp Q(o_i) ) `[B]`; a weight of 0 takes no part and has no gradient."""
    weighted_BK = torch.where(log_weights_BK > -torch.inf, sampled_BK + log_weights_BK, -torch.inf)
    return torch.cat([logged_B[:, None], weighted_BK], dim=1).logsumexp(dim=-1)


class CqlLoss(Objective):
    """The conservative term and the squared error of the logged action."""

    needs_values = True

    def __init__(self, settings: CqlObjective) -> None:
        """Train by `settings`."""
        self.settings = settings

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The rows with a logged reward; the others do not count. [ours]"""
        return (~torch.isnan(logged_rewards(batch))).sum().double()

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The mean over the rewarded prompts."""
        batch, scores = inputs.groups, inputs.scores
        assert scores.values_BSL is not None, "needs_values"
        q_BS = scores.values_BSL[:, :, 0] + self.settings.scale * scores.log_probs_BSL.sum(dim=-1)
        logged_B = q_BS[:, 0]
        rewards_B = logged_rewards(batch).to(q_BS.dtype)
        rewarded_B = ~torch.isnan(rewards_B)
        log_weights_BK = sampling_log_weights(batch).to(q_BS.dtype)
        conservative_B = log_sum_items(logged_B, q_BS[:, 1:], log_weights_BK) - logged_B
        error_B = torch.where(rewarded_B, logged_B - rewards_B, 0.0) ** 2
        loss_B = torch.where(rewarded_B, self.settings.alpha * conservative_B, 0.0) + error_B
        return Terms(
            loss=mean_over(loss_B, self.normaliser(batch)),
            metrics={
                "loss": mean_of(loss_B, rewarded_B),
                "nll": mean_of(nll_per_prompt(scores)),
                "conservative": mean_of(conservative_B, rewarded_B),
                "q_error": mean_of(error_B, rewarded_B),
                "q_logged": mean_of(logged_B, rewarded_B),
                "rewarded_share": mean_of(rewarded_B),
                "entropy": mean_of(scores.entropy_BSL[:, 1:]),
                "invalid_share": mean_of(~batch.valid_BK),
            },
        )
