"""The items of a world: where they lie in the space of tastes, as each segment sees them, and when they live.

N items, D dimensions. Segment 0 is A, segment 1 is B.
"""

from dataclasses import dataclass

import numpy as np

from sluice.catalog.errors import ConfigError
from sluice.catalog.simulator.settings import ItemDials, WorldSettings

SEGMENTS = ("A", "B")
ITEM_STREAM, USER_STREAM, LIVE_STREAM = 0, 1, 2  # first word of a stream's key


@dataclass(frozen=True, kw_only=True)
class WorldItems:
    """What is true of the items."""

    centres: np.ndarray  # float32 [C, D], unit vectors of the categories
    category: np.ndarray  # int32 [N]
    brand: np.ndarray  # int32 [N]
    vectors: np.ndarray  # float32 [2, N, D], unit vectors by segment
    quality: np.ndarray  # float32 [2, N], by segment
    popularity: np.ndarray  # float32 [N], of exposure; unrelated to quality
    first_step: np.ndarray  # int32 [N], from which an item lives
    last_step: np.ndarray  # int32 [N], until which, this step included

    def alive(self, step: int) -> np.ndarray:
        """bool [N]: the item can be shown at this step."""
        alive: np.ndarray = (self.first_step <= step) & (step <= self.last_step)
        return alive


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """The generator of one part of a world; parts do not depend on each other's order."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def draw_vectors(stream: np.random.Generator, rows: int, dims: int, length: float) -> np.ndarray:
    """float32 [rows, dims]: normal noise whose expected squared length is length^2."""
    noise = stream.standard_normal((rows, dims), dtype=np.float32)
    return noise * np.float32(length / np.sqrt(dims))


def to_unit(vectors: np.ndarray) -> np.ndarray:
    """Rows [..., D] at length 1."""
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def make_items(world: WorldSettings) -> WorldItems:
    """The items of a world; they follow from its settings and seed.

    Raises:
        ConfigError: at some step fewer items live than a slate shows.
    """
    dials, stream = world.items, random_stream(world.seed, ITEM_STREAM)
    centres = to_unit(draw_vectors(stream, dials.categories, dials.dims, 1.0))
    category = stream.integers(dials.categories, size=dials.count, dtype=np.int32)
    noise = draw_vectors(stream, dials.count, dials.dims, dials.spread)
    vectors = to_unit(centres[category] + noise)
    quality = np.float32(dials.quality_sd) * stream.standard_normal(dials.count, dtype=np.float32)
    popularity = stream.standard_normal(dials.count, dtype=np.float32)
    dealt = stream.permutation(dials.count)
    turned, turned_quality = _turn(vectors, quality, dealt, world.segment_b.rotation)
    first_step, last_step = _live(dials, world.steps, stream)
    items = WorldItems(
        centres=centres,
        category=category,
        brand=_brands(dials, category, stream),
        vectors=np.stack([vectors, turned]),
        quality=np.stack([quality, turned_quality]),
        popularity=popularity,
        first_step=first_step,
        last_step=last_step,
    )
    _check_alive(world, items)
    return items


def _turn(
    vectors: np.ndarray, quality: np.ndarray, dealt: np.ndarray, degrees: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same items as B sees them: at 0 degrees as A does, at 90 as A sees item `dealt` [N] instead."""
    if degrees == 0:  # to the bit
        return vectors, quality
    cosine, sine = (np.float32(f(np.deg2rad(degrees))) for f in (np.cos, np.sin))
    return (
        to_unit(cosine * vectors + sine * vectors[dealt]),
        cosine * quality + sine * quality[dealt],
    )


def _live(dials: ItemDials, steps: int, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """First and last step of every item, int32 [N].

    An exponential life has no memory: what is left of it at step 0 is drawn as a whole one is.
    """
    late = stream.random(dials.count) < dials.late_share
    comes = stream.integers(1, max(2, steps), size=dials.count)
    life = stream.exponential(dials.mean_life or 1.0, dials.count)
    first = np.where(late, comes, 0)
    last = np.full(dials.count, steps - 1) if dials.mean_life is None else first + np.floor(life)
    return first.astype(np.int32), np.minimum(last, steps - 1).astype(np.int32)


def _check_alive(world: WorldSettings, items: WorldItems) -> None:
    for step in range(world.steps):
        alive = int(items.alive(step).sum())
        if alive < world.logger.slate:
            raise ConfigError(
                f"at step {step} only {alive} of {world.items.count} items live, too few for a slate of "
                f"{world.logger.slate}: raise items.mean_life or items.count, or lower items.late_share or "
                "logger.slate"
            )


def _brands(dials: ItemDials, category: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """int32 [N]: mostly a brand of the item's category."""
    odd = stream.random(dials.count) < dials.brand_noise
    of_category = np.where(odd, stream.integers(dials.categories, size=dials.count), category)
    brand = of_category * dials.brands_per_category + stream.integers(
        dials.brands_per_category, size=dials.count
    )
    return brand.astype(np.int32)
