"""The truth of a world, for whoever judges: how likely any user clicks any item at any step.

Nothing that trains or prepares may import this module; `tests/unit/test_layering.py` holds that.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq

from sluice.catalog.errors import DataError
from sluice.catalog.simulator.clicks import affinity_to_all, click_logits, find_moods, to_probability
from sluice.catalog.simulator.items import SEGMENTS
from sluice.catalog.simulator.parts import STATES, TRUTH, WORLD_FILE
from sluice.catalog.simulator.sessions import START, STEP_SECONDS
from sluice.catalog.simulator.settings import WORLD_FORMAT, WorldSettings


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of a world's U users and N items.

    >>> truth = Truth.open("worlds/half-wrong-seed0")               # doctest: +SKIP
    >>> steps = truth.steps_of([1423612800])                        # doctest: +SKIP
    >>> truth.click_probability([17], steps, [[3, 4, 5]])           # doctest: +SKIP
    array([[0.07, 0.31, 0.02]], dtype=float32)
    """

    world: WorldSettings
    segment: np.ndarray  # int8 [U]: 0 is A, 1 is B
    first_visit: np.ndarray  # int32 [U], a step
    first_step: np.ndarray  # int32 [N], from which an item lives
    last_step: np.ndarray  # int32 [N], until which
    vectors: np.ndarray  # float32 [2, N, D], by segment
    quality: np.ndarray  # float32 [2, N], by segment
    tastes: np.ndarray  # float32 [U, steps kept, D]; mapped, not read
    sessions: np.ndarray  # float32 [U, steps kept, D], before the clicks of a step; mapped

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """The truth in a directory that `sluice simulate` wrote.

        Raises:
            DataError: it holds no world, one of another format, or one without its truth.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        world = WorldSettings.model_validate({"name": manifest["name"], **manifest["dials"]})
        try:
            users = pq.read_table(directory / TRUTH / "users.parquet")
            items = pq.read_table(directory / TRUTH / "items.parquet")
            states = {name: np.load(directory / TRUTH / f"{name}.npy", mmap_mode="r") for name in STATES}
        except (OSError, ValueError) as error:
            raise DataError(
                f"the truth of the world {directory} cannot be read: {error}. Run `sluice simulate` again"
            ) from None
        segment = users.column("segment").combine_chunks()
        numbers = np.asarray([SEGMENTS.index(name) for name in segment.dictionary.to_pylist()], dtype=np.int8)
        vectors = [np.stack(items.column(f"vector_{name}").to_numpy()) for name in SEGMENTS]
        return cls(
            world=world,
            segment=numbers[segment.indices.to_numpy()],
            first_visit=users.column("first_step").to_numpy(),
            first_step=items.column("first_step").to_numpy(),
            last_step=items.column("last_step").to_numpy(),
            vectors=np.stack(vectors),
            quality=np.stack([items.column(f"quality_{name}").to_numpy() for name in SEGMENTS]),
            **states,
        )

    def steps_of(self, timestamps: np.ndarray | list[int]) -> np.ndarray:
        """The steps of timestamps [n] of the log, int64 [n]."""
        steps: np.ndarray = (np.asarray(timestamps, dtype=np.int64) - START) // STEP_SECONDS
        return steps

    def click_probability(
        self,
        users: np.ndarray | list[int],
        steps: np.ndarray | list[int],
        items: np.ndarray | list[int] | list[list[int]] | None = None,
    ) -> np.ndarray:
        """How likely a user clicks an item that is looked at, at a step: float32, with the shape of `items`.

        Args:
            users: ids [n], as in the log.
            steps: [n], each with a user of `users`; what was clicked at earlier steps counts.
            items: ids [n] or [n, m]; -1 is no item, and nobody clicks it. None: every item, [n, N].

        Life spans do not count: `first_step` and `last_step` say when an item could be shown.

        Raises:
            DataError: an id or a step that the world has not, or whose truth was not kept.
        """
        users, steps = np.asarray(users), np.asarray(steps)
        chosen = None if items is None else np.asarray(items)
        self.check_moments(users, steps, chosen)
        kept, segment = steps - self.world.truth_from, self.segment[users]
        moods = find_moods(self.world.users, self.tastes[users, kept], self.sessions[users, kept])
        if chosen is None:
            affinity = affinity_to_all(moods, segment, self.vectors)
            return to_probability(click_logits(self.world.click, affinity, self.quality[segment]))
        if chosen.ndim == 2:
            segment, moods = segment[:, None], moods[:, None]
        affinity = np.einsum("...d,...d->...", moods, self.vectors[segment, chosen])
        logits = click_logits(self.world.click, affinity, self.quality[segment, chosen])
        return np.where(chosen >= 0, to_probability(logits), np.float32(0))

    def check_moments(self, users: np.ndarray, steps: np.ndarray, items: np.ndarray | None = None) -> None:
        """Raises DataError when a user, a step or an item is not there, as `click_probability` does."""
        world = self.world
        bounds = [
            ("user", users, 0, world.users.count - 1, ""),
            ("step", steps, world.truth_from, world.steps - 1, " (truth_from says which are kept)"),
        ]
        if items is not None:
            bounds.append(("item", items, -1, world.items.count - 1, " (-1 is no item)"))
        for name, values, low, high, note in bounds:
            wrong = values[(values < low) | (values > high)]
            if len(wrong):
                raise DataError(
                    f"the truth of the world {world.name} has no {name} {wrong[0]}: its {name}s are {low} to "
                    f"{high}{note}"
                )


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((directory / WORLD_FILE).read_text())
    except (OSError, ValueError):
        raise DataError(f"{directory} holds no world: there is no {WORLD_FILE} that can be read") from None
    if manifest.get("format") != WORLD_FORMAT:
        raise DataError(
            f"the world {directory} has format {manifest.get('format')}, and this version reads "
            f"{WORLD_FORMAT}: simulate it again"
        )
    return manifest
