"""The log as rounds: whose slates are whole, what came before, and what an estimate is compared with."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.errors import ConfigError, DataError
from sluice.catalog.simulator.sessions import START, STEP_SECONDS
from sluice.catalog.simulator.truth import Truth
from sluice.services.ab.click_model import Shown, predict_clicks
from sluice.services.ab.estimates import DR, IPS, SNIPS, estimate_value
from sluice.services.ab.logs import is_test_window, judge_visits, read_visits
from sluice.services.ab.serve import Ids
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world
from tests.unit.services.ab.test_serve import no_progress

DAYS = 4


def visits_of(shop, days=DAYS):
    return read_visits(shop.world, shop.truth, shop.dataset, shop.ids, days, np.arange(shop.dataset.users))


def test_visits_are_whole_slates_of_users_whose_impressions_are_logged(shop):
    visits = visits_of(shop)
    assert set(shop.truth.segment[shop.ids.users[visits.users]]) == {0}
    assert set(visits.steps) <= {8, 9, 10, 11}
    assert (np.bincount(visits.visit) == 4).all() and len(np.bincount(visits.visit)) == len(visits.users)
    for place in range(4):
        assert visits.places[visits.visit == place].tolist() == [1, 2, 3, 4]
    assert visits.clicks.mean() < 0.5 and (visits.propensity > 0).all()


def test_a_history_ends_before_the_day(shop):
    visits = visits_of(shop)
    for row in range(0, len(visits.users), 50):
        user, begins = visits.users[row], START + visits.steps[row] * STEP_SECONDS
        times = shop.dataset.timestamps[shop.dataset.offsets[user] : shop.dataset.offsets[user + 1]]
        assert (times[: visits.histories[row]] < begins).all() and (
            times[visits.histories[row] :] >= begins
        ).all()
        shown = visits.items[visits.visit == row]
        assert not set(shown) & set(shop.dataset.items_of(user)[: visits.histories[row]])


def test_visits_are_taken_with_their_impressions(shop):
    visits = visits_of(shop)
    chosen = visits.users == visits.users[7]
    few = visits.take(chosen)
    assert set(few.users) == {visits.users[7]} and len(few.items) == 4 * chosen.sum()
    assert few.items.tolist() == visits.items[np.isin(visits.visit, np.flatnonzero(chosen))].tolist()
    assert few.visit.tolist() == np.repeat(np.arange(chosen.sum()), 4).tolist()


def test_a_log_of_clicks_alone_is_refused(shop, tmp_path):
    world = small_world(users__count=400, items__count=200, segment_b__share=1.0)
    simulate_world(world, tmp_path / "w")
    ids, users = Ids.of(shop.dataset, world), np.arange(shop.dataset.users)
    with pytest.raises(DataError, match="none of the 400 users of the test has all impressions logged"):
        read_visits(tmp_path / "w", Truth.open(tmp_path / "w"), shop.dataset, ids, DAYS, users)


def test_a_log_that_has_some_impressions_tells_of_segment_a_alone(shop, tmp_path):
    """Slates of B that happen to be whole are those of many clicks."""
    world = small_world(users__count=400, items__count=200, segment_b__leak=0.8)
    simulate_world(world, tmp_path / "w")
    truth, users = Truth.open(tmp_path / "w"), np.arange(shop.dataset.users)
    visits = read_visits(tmp_path / "w", truth, shop.dataset, shop.ids, 1, users)
    assert set(truth.segment[shop.ids.users[visits.users]]) == {0}
    all_logged = replace(truth, world=small_world(users__count=400, items__count=200, segment_b__leak=1.0))
    visits = read_visits(tmp_path / "w", all_logged, shop.dataset, shop.ids, 1, users)
    assert set(truth.segment[shop.ids.users[visits.users]]) == {0, 1}


def test_visits_are_of_the_users_of_the_test(shop):
    owners = np.unique(visits_of(shop).users)
    some = read_visits(shop.world, shop.truth, shop.dataset, shop.ids, DAYS, owners[3:5])
    assert np.unique(some.users).tolist() == owners[3:5].tolist()
    of_b = np.flatnonzero(shop.truth.segment[shop.ids.users] == 1)
    with pytest.raises(DataError, match="take more --users"):
        read_visits(shop.world, shop.truth, shop.dataset, shop.ids, DAYS, of_b)


def test_the_days_of_the_log_are_those_of_test(shop):
    """It begins with day 4 of 12; a cut within a day leaves that day out."""
    assert is_test_window(shop.truth, shop.dataset, 8)
    with pytest.raises(
        ConfigError, match="--log-days is 9, and of the log's last days 8 are wholly of the test"
    ):
        is_test_window(shop.truth, shop.dataset, 9)
    cuts = {"valid_from": START, "test_from": START + 4 * STEP_SECONDS + 1}
    late, by_user = (SimpleNamespace(manifest={"time_cuts": of}) for of in (cuts, None))
    with pytest.raises(ConfigError, match="last days 7 are"):
        is_test_window(shop.truth, late, 8)
    assert is_test_window(shop.truth, by_user, 12) is False
    kept = replace(shop.truth, world=small_world(truth_from=6))
    assert is_test_window(kept, shop.dataset, 6)
    with pytest.raises(ConfigError, match="is kept of the last 6 days"):
        is_test_window(kept, shop.dataset, 7)


def test_the_rounds_are_uniform_over_the_slate(shop, planted):
    visits, maker = visits_of(shop), planted(1)
    rounds, truth = judge_visits(maker, shop.truth, shop.dataset, shop.ids, visits, no_progress)
    histories, excluded = maker.asked[0]
    assert histories[3].tolist() == shop.dataset.items_of(visits.users[3])[: visits.histories[3]].tolist()
    assert set(excluded[3].tolist()) == set(histories[3].tolist())
    slates = planted(1).make(histories, excluded)
    assert rounds.target[:, :4] == pytest.approx(np.full((len(rounds.action), 4), 0.25))
    assert (rounds.target[:, 4] == 0).all()
    for row in range(0, len(rounds.action), 97):
        slate, item = slates[visits.visit[row]].tolist(), visits.items[row]
        assert rounds.action[row] == (slate.index(item) if item in slate else 4)
    assert 0 < rounds.weights.mean() < 3
    users, steps = shop.ids.users[visits.users], visits.steps
    liked = shop.truth.click_probability(users, steps, shop.ids.items[slates]).mean(axis=1)
    assert truth == pytest.approx((liked[:, None] / np.sqrt([1, 2, 3, 4])).mean(), rel=1e-4)


def test_the_log_tells_good_slates_from_bad_near_the_truth(shop, planted):
    visits = visits_of(shop, 8)
    for goodness in (1, 0):
        rounds, truth = judge_visits(
            planted(goodness), shop.truth, shop.dataset, shop.ids, visits, no_progress
        )
        for kind, estimate in estimate_value(rounds).items():
            assert kind in (IPS, SNIPS, DR)
            assert estimate.value == pytest.approx(truth, abs=4 * estimate.error + 0.05 * truth)


def shown_of(shop):
    visits = visits_of(shop, 8)
    return visits, Shown(
        users=visits.users[visits.visit],
        histories=visits.histories[visits.visit],
        items=visits.items,
        places=visits.places,
        clicks=visits.clicks,
    )


def test_the_click_model_knows_places_and_items_and_is_calibrated(shop):
    visits, shown = shown_of(shop)
    own = predict_clicks(shop.dataset, shown, shown.items[:, None])[:, 0]
    assert own.mean() == pytest.approx(visits.clicks.mean(), rel=0.05)
    by_place = [own[visits.places == place].mean() for place in (1, 2, 3, 4)]
    assert by_place == sorted(by_place, reverse=True) and by_place[0] > 1.3 * by_place[3]
    assert np.corrcoef(own, visits.clicks)[0, 1] > 0.1
    none = predict_clicks(shop.dataset, shown, np.full((len(shown.items), 1), -1))
    assert (none == 0).all()


def test_the_click_model_of_a_user_is_fitted_on_others(shop):
    _, shown = shown_of(shop)
    even = shown.users % 2 == 0
    before = predict_clicks(shop.dataset, shown, shown.items[:, None])
    changed = Shown(**{**vars(shown), "clicks": np.where(even, 1 - shown.clicks, shown.clicks)})
    after = predict_clicks(shop.dataset, changed, shown.items[:, None])
    assert (after[even] == before[even]).all() and (after[~even] != before[~even]).any()
