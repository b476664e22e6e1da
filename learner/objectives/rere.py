"""ReRe (arXiv 2510.12211; MiniOneRec): GRPO on rewards that need no ranker.

    r_i = 1[o_i = y*] + rank_penalty_i

The penalty makes misses of a group with a hit cost more the likelier they were
(`sluice.learner.rewards.components`). A group without a hit has no preference to learn from: its rewards are
equal, its policy gradient is 0. Published: 16 beams masked to the catalogue, lr 1e-5, kl_beta 1e-3. [note] A
hallucination, which masked beams do not have, gets the lowest reward minus the margin like everywhere else.
[ours]

Definition: docs/algorithms.md, ReRe.
"""

from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.objectives.settings.objective import RereSettings


class RereLoss(GrpoLoss):
    """GRPO whose settings take no reward from the ranker."""

    settings: RereSettings
