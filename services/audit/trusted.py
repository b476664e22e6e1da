"""Whether the ranker is right for some users and wrong for others: prompts told apart by a figure of users.

The figure is trust, or the areas of the user's other prompts. All pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sluice.services.audit.estimate import Estimate

GRADED_CUT = 0.5  # of a graded trust, which weighs from here on
EDGES = (0.5, 0.65, 0.8)  # of the bands that users are counted in


@dataclass(frozen=True, kw_only=True)
class Known:
    """How the prompts fall apart by how well the ranker knows their users."""

    by: str  # "trust", or "area on other prompts", the mean of the user's other prompts
    above: float  # the cut
    share: float  # of the prompts with a figure, those above the cut
    above_area: Estimate  # of the prompts above it
    below_area: Estimate  # of the others


def tell_apart(
    by: str, figure: np.ndarray, above: float, areas: np.ndarray, users: np.ndarray
) -> Known | None:
    """The areas `[n]` of the prompts above and below a cut of a figure `[n]`; None where nobody has one.

    The figure must not know the prompt's own area.
    """
    known = ~np.isnan(figure)
    if not known.any():
        return None
    high, low = known & (figure > above), known & (figure <= above)
    return Known(
        by=by,
        above=above,
        share=float(high.sum() / known.sum()),
        above_area=Estimate.of(areas[high], users[high]),
        below_area=Estimate.of(areas[low], users[low]),
    )


def last_of_users(users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The row of each user's last prompt, in order of users."""
    order = np.lexsort((positions, users))
    last = np.append(users[order][1:] != users[order][:-1], True)
    rows: np.ndarray = order[last]
    return rows


def count_users(trust: np.ndarray) -> Mapping[str, int]:
    """How many of the users have a trust `[U]` in each band."""
    names = (
        f"up to {EDGES[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(EDGES)),
        f"over {EDGES[-1]:g}",
    )
    known = trust[~np.isnan(trust)]
    counts = np.bincount(np.searchsorted(EDGES, known, side="left"), minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True)) | {"not known": int(np.isnan(trust).sum())}
