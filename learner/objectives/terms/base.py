"""What an objective is given and what it returns.

An objective is a pure function of one `ObjectiveInput`. Whatever must not change between the updates on a
batch (gate, rewards, advantages, old log-probs and values) is derived from its `batch` and its `start`.

Its loss is a mean, over the prompts unless the objective says otherwise: `normaliser` is the denominator,
known from the batch alone, so that the learner can weigh micro-batches and workers to the mean over the whole
step.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from sluice.catalog.decoding import PLAIN_POLICY, Decoding
from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.scoring.shared_prefix import BranchScores


def nll_per_prompt(scores: BranchScores) -> torch.Tensor:
    """NLL `[B]` in nats of the ground truth."""
    return -scores.target_log_probs_BL.sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveInput:
    """What a loss is computed from: one (micro-)batch and the scores of its branches.

    All scores are of the branches that `Objective.select_branches` names.
    """

    batch: LoggedBatch  # B prompts; a `GroupBatch` where the objective needs rollouts
    scores: BranchScores  # [B, S, L] nats, the learner's, with gradient
    start: BranchScores  # [B, S, L] nats, the same before the first update on this batch, detached
    reference_BSL: torch.Tensor | None  # nats, the reference policy's; None unless `needs_reference`
    # nats, the ground truth's log-prob as in `start`, but without dropout; None where `start` has none, or
    # `needs_clean_target` says that nobody asks
    clean_target_B: torch.Tensor | None = None

    @property
    def groups(self) -> GroupBatch:
        """The batch of an objective that needs rollouts."""
        assert isinstance(self.batch, GroupBatch), "this objective needs rollouts"
        return self.batch


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The loss of one (micro-)batch, and what to report of it."""

    # scalar, the sum over the (micro-)batch divided by its `Objective.normaliser`; 0 where that is 0
    loss: torch.Tensor
    # name -> [2], (sum, count), detached: sums of micro-batches and workers add up
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class BranchInputs:
    """Which branches of each prompt the learner must score, and under which distribution."""

    branches_BSL: torch.Tensor  # int64 token ids, branch 0 is the ground truth
    allowed_BSLV: torch.Tensor | None  # bool, see `GroupBatch`
    decoding: Decoding  # whose distribution the log-probs are of


def target_alone(batch: LoggedBatch) -> BranchInputs:
    """The ground truth as the only branch, under the plain policy."""
    return BranchInputs(branches_BSL=batch.target_BL[:, None], allowed_BSLV=None, decoding=PLAIN_POLICY)


class Objective(ABC):
    """A loss over one batch."""

    needs_groups = True  # takes a GroupBatch; otherwise a LoggedBatch is enough
    needs_reference = False  # takes the reference policy's log-probs
    needs_values = False  # takes a value head: `BranchScores.values_BSL`

    def select_branches(self, batch: LoggedBatch) -> BranchInputs:
        """The branches to score: the ground truth and the K candidates."""
        assert isinstance(batch, GroupBatch), "this objective needs rollouts"
        branches_BSL = torch.cat([batch.target_BL[:, None], batch.candidates_BKL], dim=1)
        return BranchInputs(
            branches_BSL=branches_BSL, allowed_BSLV=batch.allowed_BSLV, decoding=batch.decoding
        )

    def needs_clean_target(self, batch: LoggedBatch) -> bool:
        """Whether something is decided by how likely the ground truth is, which dropout must not blur."""
        return False

    def normaliser(self, batch: LoggedBatch) -> torch.Tensor:
        """The float64 scalar that the loss of `batch` was divided by: its prompts, unless overridden."""
        return torch.full((), batch.prompts, dtype=torch.float64, device=batch.target_BL.device)

    @abstractmethod
    def __call__(self, inputs: ObjectiveInput) -> Terms:
        """The loss of one (micro-)batch."""
