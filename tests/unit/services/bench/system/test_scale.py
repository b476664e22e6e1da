"""What `sluice bench scale` simulates keeps its times, and its rows count what they say."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.settings import RolloutSettings
from sluice.catalog.errors import RunError
from sluice.services.bench.system.scale_engine import (
    ITEMS,
    EngineTimes,
    SimulatedEngine,
    SimulatedLog,
    SimulatedRanker,
    candidate_tokens,
    simulated_vocabulary,
)
from sluice.services.bench.system.scale_rows import Shape, all_have, check_accounting, summarise_rows
from tests.rollout_fakes import weights_at

TOKENS = [np.full((2, 3), 3), np.full((2, 3), 4)]


class Clock:
    """Time passes only in sleep."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


def requests(*names):
    return [GenerateRequest(request_id=name, prompt=np.ones(1), excluded=np.empty(0)) for name in names]


@pytest.fixture
def clock():
    return Clock()


def engine_at(clock, **options):
    return SimulatedEngine(
        TOKENS, EngineTimes(group_s=2.0, load_s=0.5), clock=clock, sleep=clock.sleep, **options
    )


def names(generations):
    return [one.request_id for one in generations]


def test_an_engine_takes_its_time_for_each_request(clock):
    engine = engine_at(clock)
    assert engine.step() == []
    engine.submit(requests("a", "b"))
    engine.submit(requests("c"))
    assert (engine.in_flight, clock.now_s) == (3, 100.0)
    first = engine.step()
    assert (names(first), clock.now_s, engine.in_flight) == (["a"], 102.0, 2)
    second = engine.step()
    assert (names(second), clock.now_s) == (["b"], 104.0)
    assert [first[0].tokens[0, 0], second[0].tokens[0, 0]] == [3, 4]
    assert first[0].log_probs.shape == (2, 3)


def test_a_late_step_costs_the_engine_nothing_but_a_late_submit_does(clock):
    engine = engine_at(clock)
    engine.submit(requests("a", "b", "c"))
    clock.now_s = 105.0
    assert engine.made == 2.5
    assert names(engine.step()) == ["a", "b"]
    assert (clock.now_s, engine.made) == (105.0, 2.5)
    assert names(engine.step()) == ["c"]
    assert clock.now_s == 106.0
    clock.now_s = 110.0
    engine.submit(requests("d"))
    engine.step()
    assert clock.now_s == 112.0


def test_an_engine_may_be_in_the_middle_of_its_first_lease(clock):
    engine = engine_at(clock, begun_s=3.0)
    engine.submit(requests("a", "b"))
    engine.submit(requests("c"))
    assert names(engine.step()) == ["a"]
    assert clock.now_s == 100.0
    assert names(engine.step()) == ["b"]
    assert clock.now_s == 101.0
    assert names(engine.step()) == ["c"]
    assert clock.now_s == 103.0


def test_a_swap_pauses_the_engine_and_keeps_the_version_of_what_has_begun(clock):
    engine = engine_at(clock)
    engine.submit(requests("a", "b"))
    clock.now_s = 101.0
    assert engine.load_weights(weights_at(1)) == 0.5
    assert engine.loaded_s == {1: 101.5}
    assert engine.load_weights(weights_at(2)) == 0.5
    (first,) = engine.step()
    assert clock.now_s == 103.0
    assert (first.version_min, first.version_max) == (0, 2)
    (second,) = engine.step()
    assert clock.now_s == 105.0
    assert (second.version_min, second.version_max) == (2, 2)


def test_log_ranker_and_candidates_fit_the_catalogue():
    known, log = simulated_vocabulary(seed=1), SimulatedLog(seed=1)
    tokens = candidate_tokens(known, 4, seed=1)
    items = known.lookup(np.stack(tokens), np.zeros(len(tokens), dtype=np.int64))
    assert items.shape == (64, 4)
    assert ((items >= 0) & (items < ITEMS)).all()
    assert log.history(3, 5, 2).tolist() == log.seen(3, 5)[3:].tolist()
    assert log.seen(3, 6)[5] == log.target(3, 5)
    np.testing.assert_array_equal(SimulatedRanker().score([], np.asarray([[4, -1]])), [[4, np.nan]])


def test_everybody_has_a_version_when_the_last_one_has_it_or_a_later_one():
    published = {1: 10.0, 2: 20.0, 3: 30.0}
    had = [{1: 11.0, 2: 21.5}, {2: 22.0, 3: 31.0}]
    assert all_have(published, had) == [12.0, 2.0]
    with pytest.raises(RunError, match=r"none of the weight versions \[3\] reached all 2"):
        all_have({3: 30.0}, had)


def counts(**changes):
    accounting = {"issued": 10, "trained": 6, "stale": 1, "invalid": 1, "in_flight": 2} | changes
    return SimpleNamespace(
        accounting=accounting, staleness_mean=0.5, staleness_max=1, late=0, reissued=0, **accounting
    )


def test_accounting_must_add_up():
    check_accounting(counts(), 6)
    with pytest.raises(RunError, match="does not add up"):
        check_accounting(counts(in_flight=1), 6)
    with pytest.raises(RunError, match="acknowledged 7 groups, the queue counts 6"):
        check_accounting(counts(), 7)


@pytest.mark.parametrize(("train_s", "limit", "efficiency"), [(1.0, "engines", 0.75), (4.0, "learner", 1.5)])
def test_a_row_by_hand(train_s, limit, efficiency):
    shape = Shape(actors=16, train_s=train_s, steps=4)
    assert (shape.groups_per_step, shape.supply, shape.demand) == (16, 8.0, 16 / train_s)
    assert shape.queue(RolloutSettings()).max_groups == 16 * 4 * 16 + 2 * 16
    began, ended = (
        {
            "at_s": at_s,
            "status": counts(trained=trained),
            "cpu_s": {"queue": cpu_s, "board": cpu_s, "rollout": 2 * cpu_s},
            "made": trained // 2,
            "machine": machine,
        }
        for at_s, trained, cpu_s, machine in ((50.0, 40, 1.0, (100, 200)), (60.0, 100, 1.9, (160, 280)))
    )
    found = {"began": began, "ended": ended, "published": {1: 55.0}, "pull_s": 0.25}
    loads = [({1: 55.5}, {1: 56.0}), ({1: 55.25}, {1: 57.0})]
    row = summarise_rows(shape, RolloutSettings(), found, 0.003, counts(), loads, idle=30.0)
    assert (row["limit"], row["groups_per_s"], row["efficiency"]) == (limit, 6.0, efficiency)
    assert (row["queue_cpu_ms_per_group"], row["queue_cpu_net_ms_per_group"]) == (15.0, 10.0)
    assert row["queue_limit_groups_per_s"] == 100.0
    assert row["engines_busy"] == 0.375
    assert row["rollout_cpu_ms_per_group"] == 30.0
    assert row["controller_cpu_ms_per_group"] == 0.5
    assert (row["board_cpu_ms_per_version"], row["board_cpu_net_ms_per_version"]) == (900.0, 600.0)
    assert (row["publish_to_arrived_s"], row["publish_to_active_s"]) == (0.5, 2.0)
    assert row["machine_busy"] == 0.75
