"""What DPO and IPO share: a loss of each preference pair's margin, and its mean over the pairs.

    h = (l - l_ref)(chosen) - (l - l_ref)(rejected),    l = sum over the item's tokens of log pi
    L = sum over pairs of [ f(h) - nll_weight * l(chosen) ] / number of pairs

All log-probs are those of the rollouts' distribution (temperature, allowed tokens), the reference's too. The
second term is the anchor of RPO (arXiv 2404.19733), which keeps the preferred item from losing likelihood
while h grows; there it is divided by the item's length, here it is a sum like every NLL of ours. [ours] A
prompt without a pair does not count.
"""

from abc import abstractmethod

import torch

from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.objectives.settings.preference import PairSettings
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput, Terms, nll_per_prompt
from sluice.learner.objectives.terms.logged import mean_over
from sluice.learner.objectives.terms.preference_pairs import preference_pairs
from sluice.learner.reduction import mean_of


class PairwiseLoss(Objective):
    """The mean over preference pairs of a function of the margin."""

    needs_reference = True

    def __init__(self, pairs: PairSettings, nll_weight: float) -> None:
        """Take the pairs as `pairs` say, and anchor their preferred items with `nll_weight`."""
        self.pairs = pairs
        self.nll_weight = nll_weight

    @abstractmethod
    def of_margin(self, margin_BP: torch.Tensor) -> torch.Tensor:
        """f(h) `[B, P]` of the margins h in nats."""

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The number of pairs."""
        assert isinstance(batch, GroupBatch)
        return preference_pairs(batch, self.pairs).mask_BP.sum().double()

    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The mean over the pairs of the batch."""
        batch, scores, reference_BSL = inputs.groups, inputs.scores, inputs.reference_BSL
        assert reference_BSL is not None, "margins need the reference's log-probs"
        pairs = preference_pairs(batch, self.pairs)
        mask_BP = pairs.mask_BP
        log_probs_BS = scores.log_probs_BSL.sum(dim=-1)
        gain_BS = log_probs_BS - reference_BSL.sum(dim=-1)

        def of(values_BS: torch.Tensor, branch_BP: torch.Tensor) -> torch.Tensor:
            # Masked before anything else is done with it: a branch that is not allowed has -inf, whose
            # gradient is NaN.
            return torch.where(mask_BP, values_BS.gather(1, branch_BP), 0.0)

        chosen_BP, rejected_BP = of(gain_BS, pairs.chosen_BP), of(gain_BS, pairs.rejected_BP)
        margin_BP = chosen_BP - rejected_BP
        pair_BP = torch.where(mask_BP, self.of_margin(margin_BP), 0.0)
        anchored_BP = pair_BP - self.nll_weight * of(log_probs_BS, pairs.chosen_BP)
        return Terms(
            loss=mean_over(anchored_BP, mask_BP.sum().double()),
            metrics={
                "loss": mean_of(anchored_BP, mask_BP),
                "nll": mean_of(nll_per_prompt(scores)),
                "margin": mean_of(margin_BP, mask_BP),
                "accuracy": mean_of(margin_BP > 0, mask_BP),
                "chosen_gain": mean_of(chosen_BP, mask_BP),
                "rejected_gain": mean_of(rejected_BP, mask_BP),
                "pairs": mean_of(mask_BP.sum(dim=-1)),
                "paired_share": mean_of(mask_BP.any(dim=-1)),
                "entropy": mean_of(scores.entropy_BSL[:, 1:]),
                "invalid_share": mean_of(~batch.valid_BK),
            },
        )
