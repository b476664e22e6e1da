"""AdaGRPO (arXiv 2606.08480): NLL on every prompt, GRPO where the gate says the reward can be trusted.

L = mean over prompts of [ NLL(x, y*) + weight * gate(x) * L_GRPO(x) ]

Definition: docs/algorithms.md, AdaGRPO.
"""

from dataclasses import replace

import torch

from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.gate.gate import GateResult, compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.mixture import mixture_terms
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput, Terms
from sluice.learner.reduction import mean_of


class AdaGrpoLoss(Objective):
    """NLL + weight * gate * GRPO."""

    def __init__(self, weight: float, settings: GrpoSettings, gate_settings: GateSettings) -> None:
        """Weigh the GRPO term, made by `settings` and gated by `gate_settings`, with `weight`."""
        self.weight = weight
        self.settings = settings
        self.gate_settings = gate_settings
        self.needs_reference = settings.needs_reference

    def needs_clean_target(self, batch: LoggedBatch) -> bool:
        """Where difficulty counts; the rank among exact beams is read off the beams."""
        assert isinstance(batch, GroupBatch)
        gate = self.gate_settings
        of_ranker_alone = gate.parts in ("discriminability", "trust")
        return gate.mode != "random" and not of_ranker_alone and batch.decoding.is_drawn

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The gated mixture. The gate is that of the batch start without dropout, so that it holds for all
        updates on the batch.
        """
        target_B = inputs.clean_target_B
        if target_B is None:
            target_B = inputs.start.log_probs_BSL[:, 0].sum(dim=-1)
        result = compute_gate(inputs.groups, target_B, self.gate_settings)
        terms = mixture_terms(inputs, self.settings, self.weight, result.gate_B)
        return replace(terms, metrics=terms.metrics | gate_metrics(result))


def gate_metrics(result: GateResult) -> dict[str, torch.Tensor]:
    """Shares of prompts that pass each part of the gate, and the mean ranks of the ground truth.

    Where the gate asks for trust: its mean, the share of prompts with one that it admits (by half or more),
    and the share of prompts without one.
    """
    metrics = {
        "difficulty": mean_of(result.difficulty_B),
        "discriminability": mean_of(result.discriminability_B),
        "ranker_agrees": mean_of(result.ranker_agrees_B),
        "distractors_below": mean_of(result.distractors_below_B),
        "policy_rank": mean_of(result.policy_rank_B),
        "ranker_rank": mean_of(result.ranker_rank_B),
    }
    if result.trust_B is not None and result.trust_weight_B is not None:
        known_B = ~result.trust_B.isnan()
        metrics |= {
            "trust": mean_of(result.trust_B, known_B),
            "trusted": mean_of(result.trust_weight_B >= 0.5, known_B),
            "trust_unknown": mean_of(~known_B),
        }
    return metrics
