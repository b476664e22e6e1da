"""Which settings the figures of an audit suggest, each by a stated rule. All pure. [ours]

- **tau, rho**: of the pairs of a small grid that admit between `FEWEST` and `MOST` of the prompts, the one
  whose admitted prompts' users the ranker knows best by their other prompts. Differences below `ALIKE` count
  as none. Of equals, and where fewer than `FEWEST_KNOWN` such prompts are known, the one whose rate is next
  to `AIM`.
- **weight**: `PUSH` / rate, to the next power of two. In the studies of this project what served best was a
  mixture of weight 2 (rate 1), a gate by user of 4 to 8 (rate one half) and the published gate of 16 to 32
  (rate a tenth): each pushes with 2 to 3. Measured without KL and with advantages of GRPO.
- **K**: half where most candidates repeat one of their group, since they add nothing; double where few do and
  the ground truth is hardly ever among them, so that ranks are coarse and rewards miss it.

They say where to begin; validation decides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sluice.learner.gate.gate import whole_places
from sluice.learner.gate.settings import GateSettings
from sluice.services.study.groups import Groups

GRID = (0.125, 0.25, 0.5)
FEWEST, MOST, AIM = 0.05, 0.4, 0.25
ALIKE, FEWEST_KNOWN = 0.02, 50
PUSH = 2.5
MANY_REPEATED, FEW_REPEATED, RARE_HITS = 0.5, 0.1, 0.1


@dataclass(frozen=True, kw_only=True)
class GateCell:
    """What the published gate admits with one tau and rho."""

    tau: float
    rho: float
    rate: float
    elsewhere: float  # mean area on the other prompts of the admitted prompts' users, NaN: not known


def tabulate_gates(
    groups: Groups, settings: GateSettings, elsewhere: np.ndarray, candidates: int
) -> list[GateCell]:
    """The hard gate of both halves over the grid of tau and rho, trust left aside.

    Args:
        groups: of n prompts.
        settings: the rule for distractors.
        elsewhere: float64 `[n]`, see `sluice.services.audit.order.areas_elsewhere`.
        candidates: K; a tau of less than one place is left out, since it admits nothing.
    """
    cells = []
    for tau in GRID:
        if whole_places(tau, candidates) < 1:
            continue
        for rho in GRID:
            changed = GateSettings(tau=tau, rho=rho, distractor_rule=settings.distractor_rule)
            admitted = groups.gate(changed)["rate"] > 0
            known = elsewhere[admitted & ~np.isnan(elsewhere)]
            cells.append(
                GateCell(
                    tau=tau,
                    rho=rho,
                    rate=float(admitted.mean()),
                    elsewhere=float(known.mean()) if len(known) >= FEWEST_KNOWN else float("nan"),
                )
            )
    return cells


def choose_gate(cells: Sequence[GateCell]) -> GateCell | None:
    """The cell that the rule names; None where there is none."""
    if not cells:
        return None
    inside = [cell for cell in cells if FEWEST <= cell.rate <= MOST]
    if inside and not any(math.isnan(cell.elsewhere) for cell in inside):
        best = max(cell.elsewhere for cell in inside)
        inside = [cell for cell in inside if cell.elsewhere > best - ALIKE]
    return min(inside or cells, key=lambda cell: abs(cell.rate - AIM))


def choose_weight(rate: float) -> float | None:
    """The weight of the reward's term for a gate of this rate; None where nothing is admitted.

    >>> choose_weight(1.0), choose_weight(0.5), choose_weight(0.1)
    (2.0, 4.0, 32.0)
    """
    return 2.0 ** round(math.log2(PUSH / rate)) if rate > 0 else None


def choose_candidates(candidates: int, repeated: float, hits: float) -> int:
    """K, from the share of candidates that repeat one of their group and of prompts with a hit.

    >>> choose_candidates(16, 0.6, 0.3), choose_candidates(16, 0.05, 0.02), choose_candidates(16, 0.2, 0.02)
    (8, 32, 16)
    """
    if repeated > MANY_REPEATED:
        return max(2, candidates // 2)
    return 2 * candidates if repeated < FEW_REPEATED and hits < RARE_HITS else candidates
