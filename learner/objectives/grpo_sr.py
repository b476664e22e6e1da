"""GRPO-SR (arXiv 2604.14878): REINFORCE with a group baseline, and the likelihood of the positives beside it.

    L(x) = -(1/K) sum_i (1/L) sum_t pi_it / sg(pi_it) A_i  -  alpha * sum over positives v of log pi(v | x)

sg stops the gradient: the ratio is 1, and its gradient that of log pi, so there is nothing to clip and no KL.
[paper] The reward is preference times a relevance gate, and positives take the group's maximum [note]: the
defaults of the settings. What is relevant, and that log pi(v) is the item's log-prob under the plain policy
(the NLL of the other objectives), is ours; the data has one positive per prompt. [ours]

Groups of an older policy count as if they were the current one's: keep `queue.max_staleness` low.

Definition: docs/algorithms.md, GRPO-SR.
"""

from dataclasses import replace

import torch

from sluice.learner.objectives.settings.objective import GrpoSrSettings
from sluice.learner.objectives.terms.base import ObjectiveInput, Terms, nll_per_prompt
from sluice.learner.objectives.terms.group_term import (
    GroupLoss,
    GroupTerm,
    group_metrics,
    group_of,
    over_group,
)
from sluice.learner.reduction import mean_of


def own_ratio(log_probs_BKL: torch.Tensor) -> torch.Tensor:
    """pi / sg(pi): ones, with the gradient of log pi."""
    return (log_probs_BKL - log_probs_BKL.detach()).exp()


class GrpoSrLoss(GroupLoss):
    """The term above plus alpha times the NLL of the ground truth."""

    settings: GrpoSrSettings

    def __init__(self, alpha: float, settings: GrpoSrSettings) -> None:
        """Weigh the likelihood of the positives with `alpha`."""
        super().__init__(settings)
        self.alpha = alpha

    def term(self, inputs: ObjectiveInput) -> GroupTerm:
        """The first sum, of each prompt."""
        group = group_of(inputs, self.settings)
        surrogate_BKL = own_ratio(group.log_probs_BKL) * group.advantages_BK[..., None]
        metrics = group_metrics(inputs, group)
        return GroupTerm(loss_B=-over_group(surrogate_BKL, group), rewards=group.rewards, metrics=metrics)

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """Both sums, mean over the prompts."""
        term = self.term(inputs)
        loss_B = term.loss_B + self.alpha * nll_per_prompt(inputs.scores)
        terms = self.terms(inputs, term, loss_B.mean())
        return replace(terms, metrics=terms.metrics | {"loss": mean_of(loss_B)})
