"""`sluice simulate`: a world with known truth, as the files that a shop would bring, and the truth apart.

It is written beside its place, chunk by chunk, and renamed into place at the end. A run that was killed goes
on at the first chunk that is not whole.
"""

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sluice.catalog.errors import DataError
from sluice.catalog.files import replace_directory, write_atomically
from sluice.catalog.simulator.items import SEGMENTS, make_items
from sluice.catalog.simulator.parts import TRUTH, WORLD_FILE, WorldParts
from sluice.catalog.simulator.sessions import IDEAL, START, STEP_SECONDS, Tally
from sluice.catalog.simulator.settings import WORLD_FORMAT, WorldSettings
from sluice.catalog.simulator.tables import item_table, true_item_table
from sluice.services.progress import Progress
from sluice.services.run_lock import LOCK, hold_run

_LIBRARIES = ("numpy", "pyarrow")  # whose random streams and files the world has


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What `simulate` left behind."""

    directory: Path
    reused: bool  # the directory held this world already, nothing was done
    manifest: dict[str, Any]

    def lines(self) -> list[str]:
        """What to print of it."""
        counts, figures = self.manifest["counts"], self.manifest["figures"]
        return [
            f"{counts['users']} users, {counts['items']} items, {counts['shown']} impressions, "
            f"{counts['logged']} of them logged, {counts['clicks']} clicks",
            f"{figures['clicks_per_user']:.1f} clicks a user, click-through {figures['click_through']:.4f}",
            f"true click probability {figures['p_shown']:.3f} "
            f"of what was shown, {figures['p_random']:.3f} of a random item, {figures['p_ideal']:.3f} of the "
            f"ideal {IDEAL}",
        ]


def simulate_world(
    world: WorldSettings, output: Path, progress: Progress = lambda done, total, fields: None
) -> Simulated:
    """Write the world into the directory `output`, or leave it when it is there; `progress` counts users.

    Raises:
        ConfigError: the world would have too few items.
        DataError: `output` holds another world or other files, or a world that was begun with other settings.
        RunError: another process writes this world.
    """
    manifest = _read_finished(world, output)
    if manifest is not None:
        return Simulated(directory=output, reused=True, manifest=manifest)
    items = make_items(world)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.simulating")
    with hold_run(aside):
        parts, tally = WorldParts(world, aside), Tally.empty()
        for users, tally in parts.write_missing(items):
            progress(users, world.users.count, _shown_while_working(tally))
        pq.write_table(item_table(world, items), aside / "items.parquet")
        pq.write_table(true_item_table(items), aside / TRUTH / "items.parquet")
        manifest = describe_world(world, tally)
        write_atomically(aside / WORLD_FILE, json.dumps(manifest, indent=1) + "\n")
        parts.join()
        (aside / LOCK).unlink()
        replace_directory(aside, output)
    return Simulated(directory=output, reused=False, manifest=manifest)


def describe_world(world: WorldSettings, tally: Tally) -> dict[str, Any]:
    """What `world.json` says: the dials, counts, and the figures that tell worlds apart."""
    sums = asdict(tally)
    every = {name: sum(values) for name, values in sums.items()}
    by_segment = {
        letter: {name: values[number] for name, values in sums.items()}
        for number, letter in enumerate(SEGMENTS)
    }
    return {
        "format": WORLD_FORMAT,
        "name": world.name,
        "fingerprint": world.fingerprint,
        "dials": world.dials,
        "start": START,
        "step_seconds": STEP_SECONDS,
        "counts": _counts(every) | {"items": world.items.count},
        "figures": _figures(every),
        "segments": {
            letter: {"counts": _counts(of), "figures": _figures(of)}
            for letter, of in by_segment.items()
            if of["users"]
        },
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }


def _counts(sums: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in sums.items() if not name.startswith("p_")}


def _figures(sums: dict[str, float]) -> dict[str, float]:
    shown = max(1, sums["shown"])
    return {
        "click_through": sums["clicks"] / shown,
        "clicks_per_user": sums["clicks"] / sums["users"],
        "explored_share": sums["explored"] / shown,
        "p_shown": sums["p_shown"] / shown,
        "p_random": sums["p_random"] / sums["users"],
        "p_ideal": sums["p_ideal"] / sums["users"],
    }


def _shown_while_working(tally: Tally) -> dict[str, float]:
    clicks, shown = sum(tally.clicks), sum(tally.shown)
    return {"clicks": float(clicks), "click_through": clicks / max(1, shown)}


def _read_finished(world: WorldSettings, output: Path) -> dict[str, Any] | None:
    """The manifest in `output` when it is this world; None when there is nothing."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        manifest: dict[str, Any] = json.loads((output / WORLD_FILE).read_text())
    except (OSError, ValueError):
        raise DataError(
            f"the output {output} holds other files and no {WORLD_FILE}; give an empty or a new directory"
        ) from None
    if manifest.get("fingerprint") == world.fingerprint:
        return manifest
    raise DataError(
        f"the output {output} holds another world ({_difference(manifest.get('dials', {}), world.dials)}): "
        "remove it, or give another name, seed or --output"
    )


def _difference(there: dict[str, Any], wanted: dict[str, Any], above: str = "") -> str:
    """The first dial that differs, with both values."""
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(there.get(name), dict):
            inside = _difference(there[name], value, f"{above}{name}.")
            if inside:
                return inside
        elif there.get(name) != value:
            return f"{above}{name} {there.get(name)} there, {value} now"
    return "" if above else "of another format"
