"""The users of a block: who they are, and how their tastes move.

U users of a block, D dimensions.
"""

from dataclasses import dataclass

import numpy as np

from sluice.catalog.simulator.items import WorldItems, draw_vectors, to_unit
from sluice.catalog.simulator.settings import UserDials, WorldSettings

_MIXED = 3  # categories of a taste


@dataclass(kw_only=True)
class UserState:
    """What users like before a step; it changes."""

    taste: np.ndarray  # float32 [U, D]
    session: np.ndarray  # float32 [U, D], a moving mean of what was clicked


@dataclass(kw_only=True)
class UserBlock(UserState):
    """Users, and their state before a step. Who the users are does not change."""

    ids: np.ndarray  # int32 [U]
    segment: np.ndarray  # int8 [U]: 0 is A, 1 is B
    favourite: np.ndarray  # int32 [U], a category, noisy
    first_step: np.ndarray  # int32 [U], of the first visit


def draw_users(
    world: WorldSettings, items: WorldItems, first: int, count: int, stream: np.random.Generator
) -> UserBlock:
    """The users `first` to `first + count - 1` as they are before step 0."""
    dials, categories = world.users, len(items.centres)
    shares = stream.dirichlet(np.full(_MIXED, dials.mixture), count).astype(np.float32)
    # argsort of noise: three different categories for every user
    mixed = np.argsort(stream.random((count, categories)), axis=1)[:, :_MIXED]
    taste = np.einsum("uk,ukd->ud", shares, items.centres[mixed])
    taste = to_unit(taste + draw_vectors(stream, count, world.items.dims, dials.noise))
    segment = (stream.random(count) < world.segment_b.share).astype(np.int8)
    favourite = np.where(
        stream.random(count) < dials.attribute_noise,
        stream.integers(categories, size=count),
        mixed[np.arange(count), shares.argmax(axis=1)],
    )
    late = stream.random(count) < dials.late_share
    first_step = np.where(late, stream.integers(1, max(2, world.steps), size=count), 0)
    return UserBlock(
        ids=np.arange(first, first + count, dtype=np.int32),
        segment=segment,
        favourite=favourite.astype(np.int32),
        first_step=first_step.astype(np.int32),
        taste=taste.astype(np.float32),
        session=np.zeros_like(taste, dtype=np.float32),
    )


def move_tastes(dials: UserDials, state: UserState, centres: np.ndarray, stream: np.random.Generator) -> None:
    """One step of time: every taste drifts, and some jump towards a category's centre [C, D]."""
    count, dims = state.taste.shape
    jumps = stream.random(count) < dials.jump_chance
    to = np.asarray(stream.integers(len(centres), size=count))
    moved = state.taste + draw_vectors(stream, count, dims, dials.drift)
    moved[jumps] = np.float32(dials.jump_keep) * state.taste[jumps] + centres[to[jumps]]
    state.taste = to_unit(moved)


def follow_clicks(
    dials: UserDials, state: UserState, rows: np.ndarray, vectors: np.ndarray, clicked: np.ndarray
) -> None:
    """Move the sessions of those of `rows` [R] who clicked towards the mean of the items clicked.

    `vectors` float32 [R, S, D] are those of the slots, `clicked` bool [R, S].
    """
    clicks = clicked.sum(axis=1)
    some = clicks > 0
    total = np.einsum("rs,rsd->rd", clicked.astype(np.float32), vectors)
    mean = total[some] / clicks[some, None].astype(np.float32)
    memory = np.float32(dials.session_memory)
    state.session[rows[some]] = memory * state.session[rows[some]] + (1 - memory) * mean
