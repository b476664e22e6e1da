"""Writes the dials of a world into its page and draws the picture: `python docs/scripts/simulator.py`."""

import re
import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from sluice.catalog.simulator.clicks import affinity_to_all, click_logits, find_moods, to_probability
from sluice.catalog.simulator.items import SEGMENTS, WorldItems, make_items
from sluice.catalog.simulator.sessions import IDEAL, BlockLog, simulate_block
from sluice.catalog.simulator.settings import WorldSettings
from sluice.services.config import load_world
from sluice.services.config_reference import SettingEntry, describe_settings, groups_below

DOCS = Path(__file__).resolve().parents[1]
PAGE, PICTURE = DOCS / "studies" / "simulator.md", DOCS / "pictures" / "simulator.svg"
WORLD = DOCS.parent / "configs" / "worlds" / "half-wrong.yaml"
PLACE = re.compile(r"(?<=<!-- dials -->\n).*?(?=<!-- end of the dials -->)", re.DOTALL)
COLORS = ("#2e8b57", "#d9822b", "#3b7dd8", "#a23b72")  # of the categories that are told apart
DRAWN = 500  # items of a panel


def render(page: str) -> str:
    """The page with today's dials."""
    groups = groups_below(describe_settings(WorldSettings))
    rows = [row(entry) for group in groups for entry in group.entries if not entry.is_plain_group]
    table = ["| dial | type | default | unit | meaning |", "|---|---|---|---|---|", *rows]
    return PLACE.sub(lambda _: "\n".join(table) + "\n", page)


def row(entry: SettingEntry) -> str:
    """One dial."""
    default = "(required)" if entry.default is None else f"`{entry.default}`"
    return f"| `{entry.path}` | {entry.limits} | {default} | {entry.unit} | {entry.description} |"


def draw_items(axes: Axes, items: WorldItems, segment: int) -> None:
    """The items as a segment sees them, on the plane on which A's differ most."""
    centred = items.vectors[0] - items.vectors[0].mean(axis=0)
    plane = np.linalg.svd(centred, full_matrices=False)[2][:2]
    points = (items.vectors[segment] @ plane.T)[:DRAWN]
    category = items.category[:DRAWN]
    told = np.argsort(-np.abs(items.centres @ plane.T).sum(axis=1))[: len(COLORS)]
    rest = ~np.isin(category, told)
    axes.scatter(*points[rest].T, s=5, color="#d5d8dc")
    for number, color in zip(told, COLORS, strict=True):
        axes.scatter(*points[category == number].T, s=9, color=color)
    axes.set(xticks=[], yticks=[], title=f"items as segment {SEGMENTS[segment]} sees them")


def true_clicks(world: WorldSettings, items: WorldItems, log: BlockLog, segment: int) -> list[float]:
    """Mean click probability of random items, of what was shown and of the ideal ten, at the last step."""
    rows = log.users.segment == segment
    moods = find_moods(world.users, log.tastes[rows, -1], log.sessions[rows, -1])
    affinity = affinity_to_all(moods, log.users.segment[rows], items.vectors)
    chances = to_probability(click_logits(world.click, affinity, items.quality[segment]))
    shown = np.take_along_axis(chances, log.items[rows, -1].astype(np.int64), axis=1)
    ideal = np.sort(chances, axis=1)[:, -IDEAL:]
    return [float(values.mean()) for values in (chances, shown, ideal)]


def draw_clicks(axes: Axes, world: WorldSettings, items: WorldItems) -> None:
    """What either segment truly likes."""
    logs = [simulate_block(world, items, number) for number in range(4)]
    for segment, color in enumerate(COLORS[:2]):
        values = np.mean([true_clicks(world, items, log, segment) for log in logs], axis=0)
        places = np.arange(3) + 0.4 * segment - 0.2
        axes.bar(places, values, width=0.38, color=color, label=SEGMENTS[segment])
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + 0.01, f"{value:.2f}", ha="center", fontsize=8)
    axes.set(xticks=range(3), title="true click probability")
    axes.set_xticklabels(["random item", "shown", f"ideal {IDEAL}"])
    axes.legend(title="segment", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """The page, then the picture."""
    PAGE.write_text(render(PAGE.read_text()))
    world = load_world(WORLD)
    items = make_items(world)
    matplotlib.rcParams |= {"svg.hashsalt": "simulator", "svg.fonttype": "none"}
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for segment in range(len(SEGMENTS)):
        draw_items(panels[segment], items, segment)
    draw_clicks(panels[2], world, items)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
