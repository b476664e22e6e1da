"""The log as rounds: whose slates are whole, what came before, and what an estimate is compared with."""

import numpy as np
import pytest

from sluice.catalog.errors import DataError
from sluice.catalog.simulator.sessions import START, STEP_SECONDS
from sluice.services.ab.click_model import Shown, predict_clicks
from sluice.services.ab.estimates import DR, IPS, SNIPS, estimate_value
from sluice.services.ab.logs import judge_visits, read_visits
from sluice.services.ab.serve import Ids
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world
from tests.unit.services.ab.test_serve import no_progress

DAYS = 4


def visits_of(shop, days=DAYS):
    return read_visits(shop.world, shop.truth, shop.dataset, shop.ids, days)


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
    ids = Ids.of(shop.dataset, world)
    with pytest.raises(DataError, match="no user has whole slates"):
        read_visits(tmp_path / "w", shop.truth, shop.dataset, ids, DAYS)


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
