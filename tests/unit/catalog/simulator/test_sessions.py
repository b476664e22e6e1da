"""What happens in a block: nobody sees what they had, life spans hold, and B's impressions are not logged."""

import numpy as np
import pytest

from sluice.catalog.simulator.items import make_items
from sluice.catalog.simulator.sessions import START, STEP_SECONDS, block_count, simulate_block
from tests.unit.catalog.simulator.worlds import first_block, shown_slots, small_world


def same_log(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("items", "propensity", "explored", "clicked", "dwell", "logged", "timestamps", "tastes")
    )


def test_a_block_follows_from_its_number_and_the_seed():
    world = small_world(users__count=600)
    items = make_items(world)
    assert block_count(world) == 3
    last, first = simulate_block(world, items, 2), simulate_block(world, items, 0)
    assert same_log(simulate_block(world, items, 2), last)
    assert not same_log(simulate_block(world, items, 1), first)
    assert (len(first.users.ids), len(last.users.ids), last.users.ids[0]) == (250, 100, 500)
    other = small_world(users__count=600, seed=1)
    assert not same_log(simulate_block(other, make_items(other), 0), first)


def test_nobody_is_shown_what_they_clicked_or_an_item_twice_in_a_slate():
    slots = shown_slots(first_block(small_world())[1])
    assert not slots.duplicated(["user", "step", "item"]).any()
    clicks = slots[slots.clicked]
    assert len(clicks) > 500 and not clicks.duplicated(["user", "item"]).any()
    had = slots.merge(clicks[["user", "item", "step"]], on=["user", "item"], suffixes=("", "_click"))
    assert (had.step <= had.step_click).all()


def test_explored_slots_are_as_many_as_the_dial_says():
    slots = shown_slots(first_block(small_world(logger__exploration=0.3))[1])
    assert slots.explored.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / len(slots)))
    assert (slots.propensity > 0.3 / 120).all() and (slots.propensity <= 1).all()


def test_b_is_logged_by_its_clicks_alone():
    slots = shown_slots(first_block(small_world())[1])
    assert slots.segment.mean() == pytest.approx(0.5, abs=0.15)
    assert slots.logged[(slots.segment == 0) | slots.clicked].all()
    assert not slots.logged[(slots.segment == 1) & ~slots.clicked].any()
    assert (slots.clicked & (slots.segment == 1)).sum() > 100


@pytest.mark.parametrize("leak", [0.3, 1.0])
def test_a_leak_logs_its_share_of_bs_impressions(leak: float):
    slots = shown_slots(first_block(small_world(segment_b__leak=leak))[1])
    of_b = slots.logged[(slots.segment == 1) & ~slots.clicked]
    assert of_b.mean() == pytest.approx(leak, abs=0.03)


def test_segments_are_alike_without_a_rotation_and_in_what_they_click():
    """B's taste is as good a guide to B's clicks as A's to A's, whatever the angle."""
    for rotation in (0, 90):
        slots = shown_slots(first_block(small_world(segment_b__rotation=rotation, steps=30))[1])
        rates = slots.groupby("segment").clicked.mean()
        assert rates[0] == pytest.approx(rates[1], rel=0.2) and rates.min() > 0.03


def test_items_are_shown_within_their_lives():
    world = small_world(items__late_share=0.4, items__mean_life=6, items__count=400)
    items, log = first_block(world)
    slots = shown_slots(log)
    assert (items.first_step[slots.item] <= slots.step).all()
    assert (slots.step <= items.last_step[slots.item]).all()
    late = items.first_step > 0
    assert late[slots.item].any() and (items.last_step < 11).any()


def test_cold_users_come_late_and_unknown():
    world = small_world(users__late_share=0.5, logger__exploration=0, logger__popularity_weight=3)
    items, log = first_block(world)
    slots = shown_slots(log)
    first = slots.groupby("user").step.min()
    assert (first == log.users.first_step[first.index]).all() and (log.users.first_step > 0).mean() > 0.4
    # Before the logger learns tastes anew, popularity is all that it has for them.
    popularity = items.popularity[slots.item]
    known = log.users.first_step[slots.user] <= slots.step - slots.step % 5
    assert popularity[~known].mean() > popularity[known].mean() + 0.2


def test_slates_are_shorter_when_a_user_has_had_all_there_is():
    """Every item that is looked at is clicked, and most of them come late."""
    eager = {"click__offset": 50, "click__position_bias": 0, "items__count": 48, "items__late_share": 0.85}
    items, log = first_block(small_world(**eager, seed=2))
    here = np.asarray([int(items.alive(step).sum()) for step in range(12)])
    expected: list[int] = []
    for count in here.tolist():
        expected.append(min(4, count - sum(expected)))
    assert min(expected) < 4, "the case is of use"
    assert ((log.items >= 0).sum(axis=2) == expected).all()
    assert not log.clicked[log.items < 0].any() and not log.logged[log.items < 0].any()


def test_a_visit_is_a_moment_of_its_day():
    log = first_block(small_world())[1]
    into = log.timestamps - START - STEP_SECONDS * np.arange(12)
    assert into.min() >= 0 and into.max() + 3 < STEP_SECONDS and into.std() > STEP_SECONDS / 5


def test_tastes_keep_their_length_and_drift():
    log = first_block(small_world(users__drift=0.1, users__jump_chance=0))[1]
    assert np.linalg.norm(log.tastes, axis=2) == pytest.approx(1, abs=1e-5)
    cosine = (log.tastes[:, 1:] * log.tastes[:, :-1]).sum(axis=2)
    assert cosine.min() > 0.95 and cosine.mean() == pytest.approx(1 / np.sqrt(1 + 0.01 * 7 / 8), abs=0.002)
    still = first_block(small_world(users__drift=0, users__jump_chance=0))[1]
    assert still.tastes == pytest.approx(np.repeat(still.tastes[:, :1], 12, axis=1), abs=1e-5)


def test_a_jump_goes_to_a_category():
    items, log = first_block(small_world(users__jump_chance=1, users__jump_keep=0, users__drift=0))
    nearest = (log.tastes[:, 1:] @ items.centres.T).max(axis=2)
    assert nearest == pytest.approx(1, abs=1e-5)


def test_the_session_is_a_moving_mean_of_the_clicks_before():
    items, log = first_block(small_world())
    session = np.zeros(8)
    user = int(log.clicked.sum(axis=(1, 2)).argmax())
    seen = items.vectors[log.users.segment[user]]
    for step in range(12):
        assert log.sessions[user, step] == pytest.approx(session, abs=1e-5)
        clicked = log.items[user, step][log.clicked[user, step]]
        if len(clicked):
            session = 0.7 * session + 0.3 * seen[clicked].mean(axis=0)


def test_dwell_follows_the_logit():
    dials = {"click__dwell_noise": 0, "click__dwell_slope": 0.0, "click__dwell_base": 2.0}
    log = first_block(small_world(**dials))[1]
    assert log.dwell[log.clicked] == pytest.approx(np.exp(2.0), rel=1e-5)
    log = first_block(small_world())[1]
    assert np.log(log.dwell[log.clicked]).mean() == pytest.approx(3.0, abs=0.25)


def test_the_tally_counts_the_log():
    log = first_block(small_world())[1]
    slots, tally = shown_slots(log), log.tally
    by_segment = slots.groupby("segment")
    assert tally.users == np.bincount(log.users.segment).tolist()
    assert tally.shown == by_segment.size().tolist() and tally.clicks == by_segment.clicked.sum().tolist()
    assert tally.logged == by_segment.logged.sum().tolist()
    assert tally.explored == by_segment.explored.sum().tolist()
    assert 0 < tally.p_random[0] < tally.p_ideal[0] < tally.users[0]
