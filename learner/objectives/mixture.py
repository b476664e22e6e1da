"""NLL + weight * GRPO on every prompt: the fixed mixture that the gate is compared with.

    L = mean over prompts of [ NLL(x, y*) + weight * gate(x) * L_GRPO(x) ]

`mixture_terms` serves the gated objective too; here the gate is 1.

Definition: docs/algorithms.md, Mixture.
"""

import torch

from sluice.learner.objectives.grpo import grpo_term
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput, Terms, nll_per_prompt
from sluice.learner.objectives.terms.group_term import reward_metrics
from sluice.learner.reduction import mean_of


def mixture_terms(
    inputs: ObjectiveInput, settings: GrpoSettings, weight: float, gate_B: torch.Tensor
) -> Terms:
    """NLL on every prompt, the group-relative term by `settings` times the gate `[B]`, in [0, 1].

    Where the gate is 0 there is no term, rather than one multiplied by 0: the loss and its gradient then
    equal pure NLL to the bit, and nothing that overflows in a refused prompt can reach the others.
    """
    nll_B, term = nll_per_prompt(inputs.scores), grpo_term(inputs, settings, gate_B > 0)
    admitted_grpo_B = gate_B * term.loss_B
    loss_B = nll_B + weight * admitted_grpo_B
    metrics = {
        "loss": mean_of(loss_B),
        "nll": mean_of(nll_B),
        "grpo": mean_of(admitted_grpo_B),
        **term.metrics,
        **reward_metrics(term.rewards.rewards_BK, gate_B),
    }
    return Terms(loss=loss_B.mean(), metrics=metrics)


class MixtureLoss(Objective):
    """NLL + weight * GRPO, gate = 1."""

    def __init__(self, weight: float, settings: GrpoSettings) -> None:
        """Weigh the GRPO term, made by `settings`, with `weight`."""
        self.weight = weight
        self.settings = settings
        self.needs_reference = settings.needs_reference

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The mixture with every prompt admitted."""
        admitted_B = torch.ones_like(inputs.groups.target_scores_B)
        return mixture_terms(inputs, self.settings, self.weight, admitted_B)
