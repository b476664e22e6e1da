"""The report's pictures: matplotlib figures as inline SVG whose text and grid follow the page's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from sluice.learner.activity_clock import is_wait

BLUE, ORANGE, GREEN, RED = "#3b82f6", "#e8890c", "#12a150", "#e5484d"
PURPLE, TEAL, GREY = "#8e5cf0", "#0fa3a3", "#8893a3"
_INK, _GRID = "#010203", "#040506"  # stand-ins that become CSS variables
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    color: str
    points: Sequence[tuple[float, float]]
    smooth: bool = False  # noisy per-step values: draw them faintly, with a running mean on top
    markers: bool = False


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One named point of the retrieval-validity plane."""

    label: str
    color: str
    x: float
    y: float
    y_interval: tuple[float, float] | None = None


def line_chart(
    series: Sequence[Series], y_label: str, percent: bool = False, levels: Mapping[str, float] | None = None
) -> str | None:
    """Curves over optimizer steps; `levels` are horizontal lines with a name. None when there is nothing to
    draw.
    """
    series = [line for line in series if line.points]
    if not series:
        return None
    with _styled({"svg.hashsalt": y_label + series[0].label}):
        figure, axes = _figure()
        for line in series:
            _draw(axes, line)
        for name, value in (levels or {}).items():
            axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=name)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
        if len(series) + len(levels or {}) > 1:
            axes.legend(loc="best", ncols=2)
        return _svg(figure)


def plane_chart(paths: Sequence[Series], spots: Sequence[Spot], salt: str) -> str | None:
    """The retrieval-validity plane: hallucination to the right, HR@10 up; the better corner is at the top
    left.
    """
    paths = [path for path in paths if path.points]
    if not paths and not spots:
        return None
    with _styled({"svg.hashsalt": salt}):
        figure, axes = _figure(height=3.1)
        for path in paths:
            xs, ys = zip(*path.points, strict=True)
            axes.plot(xs, ys, color=path.color, linewidth=1, alpha=0.55)
            sizes = [14 + 22 * place / max(1, len(xs) - 1) for place in range(len(xs))]
            axes.scatter(xs, ys, s=sizes, color=path.color, alpha=0.75, label=path.label, linewidths=0)
        for spot in spots:
            if spot.y_interval is not None:
                axes.plot([spot.x, spot.x], spot.y_interval, color=spot.color, linewidth=1.5, alpha=0.6)
            axes.scatter([spot.x], [spot.y], s=60, color=spot.color, linewidths=0, label=spot.label, zorder=3)
        axes.margins(x=0.1, y=0.12)
        axes.set_xlabel("hallucination, share of the decoded top 10")
        axes.set_ylabel("HR@10")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.legend(loc="best")
        return _svg(figure)


def stacked_bar(parts: Mapping[str, float], unit: str) -> str | None:
    """One horizontal bar, its parts side by side in the order given."""
    parts = {name: value for name, value in parts.items() if value > 0}
    if not parts:
        return None
    with _styled({"svg.hashsalt": "bar", "axes.grid": False}):
        figure, axes = _figure(height=1.9)
        left, colors = 0.0, (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY)
        for index, (name, value) in enumerate(parts.items()):
            color = colors[index % len(colors)]
            axes.barh([0], [value], left=left, color=color, height=0.5, label=f"{name} {value:.0f} {unit}")
            left += value
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, left)
        axes.set_xlabel(f"{unit}, {left:.0f} in all")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return _svg(figure)


def time_bars(times: Mapping[str, Mapping[str, float]]) -> str | None:
    """A bar per component: the share of its own time that each activity took, its waits last, pale and
    hatched.
    """
    times = {component: seconds for component, seconds in times.items() if sum(seconds.values()) > 0}
    if not times:
        return None
    names = {activity for seconds in times.values() for activity in seconds}
    activities = sorted(names, key=lambda activity: (is_wait(activity), activity))
    colors = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY, "#b45309", "#1e40af", "#86b817", "#d66fb0")
    with _styled({"svg.hashsalt": "time", "axes.grid": False, "hatch.linewidth": 0.6}):
        figure, axes = _figure(height=1.2 + 0.3 * len(times) + 0.16 * len(activities) / 2)
        lefts = dict.fromkeys(times, 0.0)
        for index, activity in enumerate(activities):
            shares = {
                name: seconds.get(activity, 0.0) / sum(seconds.values()) for name, seconds in times.items()
            }
            look: dict[str, Any] = {
                "hatch": "////",
                "fill": False,
                "edgecolor": colors[index % len(colors)],
                "linewidth": 0.6,
            }
            if not is_wait(activity):
                look = {"color": colors[index % len(colors)]}
            label = activity.replace("_", " ")
            axes.barh(
                list(times), list(shares.values()), left=list(lefts.values()), height=0.6, label=label, **look
            )
            lefts = {name: lefts[name] + share for name, share in shares.items()}
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4)
        return _svg(figure)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A named value with its interval."""

    label: str
    value: float
    low: float
    high: float


def interval_chart(intervals: Sequence[Interval], x_label: str, salt: str) -> str | None:
    """A line for each interval, from top to bottom; green above 0, red below, grey across it."""
    if not intervals:
        return None
    with _styled({"svg.hashsalt": salt}):
        figure, axes = _figure(height=0.8 + 0.24 * len(intervals))
        for place, shown in enumerate(intervals):
            color = GREEN if shown.low > 0 else RED if shown.high < 0 else GREY
            axes.plot([shown.low, shown.high], [place, place], color=color, linewidth=2)
            axes.scatter([shown.value], [place], s=26, color=color, linewidths=0, zorder=3)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(intervals)), [shown.label for shown in intervals])
        axes.invert_yaxis()
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        return _svg(figure)


@dataclass(frozen=True, kw_only=True)
class Band:
    """A line with what it may as well be, at each x."""

    label: str
    color: str
    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def band_chart(
    bands: Sequence[Band],
    *,
    labels: tuple[str, str],
    salt: str,
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, tuple[float, float, float]] | None = None,
) -> str:
    """Lines with their bands; `labels` of x and y.

    `levels` are horizontal lines with a name, `marks` intervals (x, low, high) with a name.
    """
    with _styled({"svg.hashsalt": salt}):
        figure, axes = _figure(height=3.1)
        for band in bands:
            axes.fill_between(band.x, band.low, band.high, color=band.color, alpha=0.18, linewidth=0)
            axes.plot(band.x, band.middle, color=band.color, linewidth=1.8, label=band.label)
        for name, (x, low, high) in (marks or {}).items():
            axes.plot([x, x], [low, high], color=ORANGE, linewidth=2.5, label=name)
        for name, value in (levels or {}).items():
            axes.axhline(value, color=GREEN, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.legend(loc="best")
        return _svg(figure)


@dataclass(frozen=True, kw_only=True)
class HeatCell:
    """One cell of a heat map."""

    value: float  # its colour: red below 0, grey at 0
    text: str


def heat_map(
    cells: Mapping[tuple[str, str], HeatCell],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    limit: float,
    salt: str,
    color: str = GREEN,
) -> str:
    """Cells by (row, column), of those that there are; `labels` of x and y; a value of `limit` has the full
    colour.
    """
    with _styled({"svg.hashsalt": salt, "axes.grid": False}):
        figure, axes = _figure(height=0.7 + 0.62 * len(rows))
        for (row, column), cell in cells.items():
            x, y = columns.index(column), rows.index(row)
            strength = 0.06 + 0.69 * min(1.0, abs(cell.value) / limit if limit > 0 else 0.0)
            face = color if cell.value > 0 else RED if cell.value < 0 else GREY
            axes.add_patch(
                Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, facecolor=face, alpha=strength, linewidth=0)
            )
            axes.text(x + 0.5, y + 0.5, cell.text, ha="center", va="center", fontsize=9, linespacing=1.35)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
        axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        return _svg(figure)


def reliability_chart(
    predicted: Sequence[float],
    observed: Sequence[float],
    events: Sequence[int],
    labels: tuple[str, str],
    salt: str,
) -> str:
    """A calibration curve beside the diagonal, on which every prediction comes true; dots grow with their
    events.
    """
    with _styled({"svg.hashsalt": salt}):
        figure, axes = _figure(height=3.1)
        low, high = min(*predicted, *observed), max(*predicted, *observed)
        axes.plot(
            [low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="calibrated"
        )
        axes.plot(predicted, observed, color=BLUE, linewidth=1, alpha=0.55)
        sizes = [16 + 44 * count / max(events) for count in events]
        axes.scatter(predicted, observed, s=sizes, color=BLUE, linewidths=0, label="bins", zorder=3)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.legend(loc="best")
        return _svg(figure)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it."""
    result, total = [], 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        result.append(total / min(index + 1, window))
    return result


def _styled(settings: dict[RcKeyType, Any]) -> AbstractContextManager[None]:
    """The house's style and these settings; `svg.hashsalt` keeps the ids of a picture as they are."""
    return matplotlib.rc_context({**_STYLE, **settings})


def _figure(height: float = 2.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _draw(axes: Axes, series: Series) -> None:
    xs, ys = zip(*series.points, strict=True)
    if series.smooth and len(ys) > 10:
        axes.plot(xs, ys, color=series.color, linewidth=0.8, alpha=0.25)
        ys = tuple(running_mean(ys, max(5, len(ys) // 15)))
    marker = "o" if series.markers else None
    axes.plot(xs, ys, color=series.color, linewidth=1.8, marker=marker, markersize=4, label=series.label)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<g id="[^"]*"', "<g", text
    )  # several pictures share one page, and nothing refers to groups
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text).replace(">*{", ">svg *{")
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"',
        r"<svg \1",
        re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1),
    )
