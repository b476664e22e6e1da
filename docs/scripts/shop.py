"""Draws who gains and who loses in a simulated shop, from a study that is done:
`python docs/scripts/shop.py configs/studies/half-wrong.yaml docs/pictures/half-wrong.svg`.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sluice.services.study.analysis import Difference, Findings
from sluice.services.study.judges.lists import TRUE_CTR
from sluice.services.study.settings import StudyConfig, load_study

ROWS = {  # by the name of the row
    "mixture-4": "reward for everybody, weight 4",
    "best-mixture": "reward for everybody, best weight",
    "random": "gate by chance",
    "gate": "published gate",
    "user": "gate by user",
    "oracle": "oracle gate",
}
GROUPS = {  # of users
    "A": ("the ranker knows them", "#3b7dd8"),
    "B": ("it does not", "#d9822b"),
    None: ("all users", "#2e8b57"),
}


def changes(study: StudyConfig) -> dict[tuple[str, str | None], Difference]:
    """By row and group: true click-through less that of NLL."""
    (of_set,) = study.sets
    return {
        (found.first, found.group): found
        for found in Findings(study).differences(of_set)
        if (found.second, found.metric) == ("nll", TRUE_CTR)
    }


def draw(study: StudyConfig, picture: Path) -> None:
    """A bar for each row and group, relative to NLL, with 95% intervals over users."""
    found = changes(study)
    rows = {row: title for row, title in ROWS.items() if (row, None) in found}
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.48 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        for offset, (group, (title, color)) in enumerate(GROUPS.items()):
            change = found[row, group]
            middle, low, high = (
                100 * value / change.second_mean for value in (change.mean, change.low, change.high)
            )
            y = place + 0.26 * (offset - 1)
            axes.barh(y, middle, height=0.24, color=color, label=None if place else title)
            axes.errorbar(
                middle, y, xerr=[[middle - low], [high - middle]], color="black", linewidth=0.8, capsize=2
            )
    axes.axvline(0, color="#8a8f98", linewidth=1)
    axes.set(
        yticks=range(len(rows)),
        yticklabels=rows.values(),
        xlabel="true click-through against supervised training alone, %, 95% interval",
    )
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)


if __name__ == "__main__":
    draw(load_study(sys.argv[1]), Path(sys.argv[2]))
