"""Items: unit vectors around their categories, turned for segment B, with life spans."""

import numpy as np
import pytest

from sluice.catalog.errors import ConfigError
from sluice.catalog.simulator.items import make_items
from tests.unit.catalog.simulator.worlds import small_world


def test_items_are_unit_vectors_near_their_category():
    items = make_items(small_world(items__count=600))
    assert np.linalg.norm(items.vectors, axis=2) == pytest.approx(1, abs=1e-5)
    to_centres = items.vectors[0] @ items.centres.T
    own = to_centres[np.arange(600), items.category]
    assert own.mean() == pytest.approx(1 / np.sqrt(1 + 0.78**2), abs=0.05)  # the noise has length 0.78
    assert to_centres.mean() < 0.4
    assert np.bincount(items.category, minlength=6).min() > 60


def test_b_sees_the_items_of_a_dealt_out_anew():
    """At 90 degrees every item has another item's vector and quality; at 0 its own, to the bit."""
    items = make_items(small_world())
    match = np.argmax(items.vectors[1] @ items.vectors[0].T, axis=1)
    assert sorted(match) == list(range(120)) and (match == np.arange(120)).mean() < 0.1
    assert items.vectors[1] == pytest.approx(items.vectors[0][match], abs=1e-6)
    assert items.quality[1] == pytest.approx(items.quality[0][match], abs=1e-6)
    alike = make_items(small_world(segment_b__rotation=0))
    assert (alike.vectors[1] == alike.vectors[0]).all() and (alike.quality[1] == alike.quality[0]).all()


def test_an_angle_between_mixes_both():
    items = make_items(small_world(segment_b__rotation=45))
    whole = make_items(small_world())
    mixed = whole.vectors[0] + whole.vectors[1]
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    assert items.vectors[1] == pytest.approx(mixed, abs=1e-5)
    assert items.quality[1] == pytest.approx((whole.quality[0] + whole.quality[1]) / np.sqrt(2), abs=1e-5)


def test_who_comes_stays_unless_told_otherwise():
    items = make_items(small_world())
    assert items.alive(0).all() and items.alive(11).all()


def test_cold_items_come_late_and_items_go():
    late = make_items(small_world(items__count=2000, items__late_share=0.3))
    comes = late.first_step > 0
    assert comes.mean() == pytest.approx(0.3, abs=0.05)
    assert set(late.first_step[comes]) == set(range(1, 12)) and (late.last_step == 11).all()
    assert not late.alive(0)[comes].any() and late.alive(11).all()
    short = make_items(small_world(items__count=4000, items__mean_life=5))
    assert (short.first_step == 0).all()
    # An exponential life of 5 steps is longer than 4 with chance exp(-4 / 5).
    assert short.alive(4).mean() == pytest.approx(np.exp(-4 / 5), abs=0.03)
    both = make_items(small_world(items__count=4000, items__late_share=0.5, items__mean_life=5))
    assert (both.last_step >= both.first_step).all() and both.first_step.max() == both.last_step.max() == 11


def test_a_shop_without_items_to_show_is_refused():
    world = small_world(items__mean_life=1.5)
    with pytest.raises(
        ConfigError, match=r"at step \d+ only [1-3] of 120 items live, .* slate of 4: raise items"
    ):
        make_items(world)


def test_brands_tell_of_categories():
    items = make_items(small_world(items__count=3000, items__brand_noise=0.25))
    right = items.brand // 5 == items.category
    assert right.mean() == pytest.approx(0.75 + 0.25 / 6, abs=0.03)
    assert len(np.unique(items.brand)) == 30


def test_attributes_noise_and_quality_are_drawn_apart():
    assert (make_items(small_world(items__quality_sd=0)).quality == 0).all()
    items = make_items(small_world(items__count=3000))
    assert items.quality[0].std() == pytest.approx(0.7, abs=0.05)
    assert abs(np.corrcoef(items.quality[0], items.popularity)[0, 1]) < 0.07
