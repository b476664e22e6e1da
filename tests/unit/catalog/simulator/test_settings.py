"""The dials of a world: what is refused, and what its fingerprint depends on."""

import pytest
from pydantic import ValidationError

from sluice.catalog.simulator.settings import BLOCK_USERS, WorldSettings
from tests.unit.catalog.simulator.worlds import small_world


def test_the_defaults_are_the_prototype():
    world = WorldSettings(name="x")
    assert (world.users.count, world.items.count, world.steps, world.logger.slate) == (4000, 1500, 50, 8)
    assert (world.click.offset, world.click.sharpness, world.logger.taste_weight) == (-4.0, 6.0, 0.9)
    assert (world.segment_b.share, world.segment_b.rotation, world.segment_b.leak) == (0.5, 90.0, 0.0)
    assert world.items.late_share == world.users.late_share == 0.0 and world.items.mean_life is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"items__count": 47},
            r"items\.count 47 is below 48, logger\.slate 4 x steps 12.*Raise items\.count, or lower steps",
        ),
        ({"items__categories": 121}, r"items\.categories 121 is above items\.count 120: lower it"),
        ({"truth_from": 12}, r"truth_from 12 keeps none of the steps 0 to 11: lower it"),
        ({"chunk_users": BLOCK_USERS + 1}, "multiple of 250"),
        ({"segment_b__rotation": 91}, "less than or equal to 90"),
        ({"logger__exploration": 1.1}, "less than or equal to 1"),
        ({"logger__slates": 3}, "Extra inputs are not permitted"),
        ({"items__late_share": 1.0}, "less than 1"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        small_world(**changes)


def test_bounds_are_reached():
    assert small_world(items__count=48, truth_from=11, items__categories=48).truth_from == 11


def test_the_fingerprint_is_of_all_that_changes_the_world():
    fingerprint = small_world().fingerprint
    assert len(fingerprint) == 16
    for same in ({"chunk_users": 500}, {"output": "elsewhere"}, {"name": "other"}):
        assert small_world(**same).fingerprint == fingerprint
    for other in ({"seed": 1}, {"segment_b__leak": 0.1}, {"truth_from": 1}, {"items__brand_noise": 0.1}):
        assert small_world(**other).fingerprint != fingerprint


def test_a_world_has_a_directory_of_its_own():
    assert small_world(seed=3).directory.as_posix() == "worlds/small-seed3"
