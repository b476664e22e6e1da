"""Small worlds, and what happens in one as a table of all slots."""

import numpy as np
import pandas as pd

from sluice.catalog.simulator.items import WorldItems, make_items
from sluice.catalog.simulator.sessions import BlockLog, simulate_block
from sluice.catalog.simulator.settings import WorldSettings


def small_world(**changes: object) -> WorldSettings:
    """200 users, 120 items and 12 steps of 4 slots; a dotted dial is written with two underscores."""
    raw: dict = {
        "name": "small",
        "steps": 12,
        "items": {"count": 120, "categories": 6, "dims": 8},
        "users": {"count": 200},
        "logger": {"slate": 4, "stale_steps": 5},
    }
    for name, value in changes.items():
        *groups, leaf = name.split("__")
        node = raw
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return WorldSettings.model_validate(raw)


def first_block(world: WorldSettings) -> tuple[WorldItems, BlockLog]:
    items = make_items(world)
    return items, simulate_block(world, items, 0)


def shown_slots(log: BlockLog) -> pd.DataFrame:
    """Every slot that had an item, in order of user, step and place."""
    user, step, slot = np.nonzero(log.items >= 0)
    at = (user, step, slot)
    return pd.DataFrame(
        {
            "user": user,
            "segment": log.users.segment[user],
            "step": step,
            "slot": slot,
            "item": log.items[at],
            "propensity": log.propensity[at],
            "explored": log.explored[at],
            "clicked": log.clicked[at],
            "logged": log.logged[at],
        }
    )
