"""Progress, not time, tells a hang."""

import pytest

from sluice.cluster.supervision import Bounds, Health, Pulse, Vitals

BOUNDS = Bounds(start_s=300, hang_s=60, slow_s=120)


def pulse(turns=0, done=0, works=True, process="one", started=True):
    return Pulse(process=process, turns=turns, done=done, works=works, started=started)


def after(*seen, now_s):
    """The verdict on a component of which these pulses were seen, (second, pulse) each."""
    vitals = Vitals(0.0)
    for at_s, one in seen:
        vitals.see(one, at_s)
    return vitals.judge(now_s, BOUNDS)


@pytest.mark.parametrize(
    ("seen", "now_s", "health"),
    [
        ([(0, pulse())], 60, Health.FINE),
        ([(0, pulse())], 61, Health.HUNG),  # no answer
        ([(0, pulse()), (59, pulse())], 60, Health.FINE),
        ([(0, pulse()), (61, pulse())], 61, Health.HUNG),  # the loop stands
        ([(0, pulse(1)), (61, pulse(2))], 61, Health.FINE),
        ([(0, pulse(works=False)), (61, pulse(works=False))], 61, Health.HUNG),  # it turns idle too
        ([(0, pulse(1)), (121, pulse(2))], 121, Health.SLOW),
        ([(0, pulse(1)), (60, pulse(2, done=1)), (121, pulse(3, done=1))], 121, Health.FINE),
        ([(0, pulse(1, works=False)), (121, pulse(2, works=False))], 121, Health.STARVED),
        ([(0, pulse(1, works=False)), (110, pulse(2)), (121, pulse(3))], 121, Health.FINE),
    ],
)
def test_what_a_component_says_of_itself_tells_how_it_is(seen, now_s, health):
    assert after(*seen, now_s=now_s).health is health


@pytest.mark.parametrize(
    ("seen", "now_s", "health"),
    [
        ([], 300, Health.STARTING),
        ([], 301, Health.HUNG),
        ([(100, pulse(started=False))], 160, Health.STARTING),
        ([(100, pulse(started=False))], 161, Health.HUNG),  # stopped while it loaded
        ([(100, pulse(started=False)), (290, pulse(started=False))], 300, Health.STARTING),
        ([(100, pulse(started=False)), (290, pulse(started=False))], 301, Health.HUNG),
        ([(290, pulse(started=False)), (299, pulse())], 310, Health.FINE),
    ],
)
def test_loading_has_a_bound_of_its_own(seen, now_s, health):
    assert after(*seen, now_s=now_s).health is health


def test_the_reason_says_which_it_is():
    assert after((0, pulse()), now_s=70).reason == (
        "it has given no sign of life for 70 s: its process is stopped or wedged"
    )
    assert after((0, pulse()), (70, pulse()), now_s=70).reason == (
        "it is alive, but what it works on has not moved for 70 s"
    )


def test_a_component_that_was_replaced_begins_anew():
    vitals = Vitals(0.0)
    vitals.see(pulse(), 0.0)
    assert vitals.judge(100.0, BOUNDS).health is Health.HUNG
    vitals.renew(100.0)
    assert vitals.judge(200.0, BOUNDS).health is Health.STARTING


def test_a_process_that_somebody_else_started_is_noticed_once():
    vitals = Vitals(0.0)
    assert not vitals.see(pulse(turns=7), 1.0)
    assert vitals.see(pulse(turns=7, process="two"), 50.0)
    assert not vitals.see(pulse(turns=7, process="two"), 60.0)
    assert vitals.judge(100.0, BOUNDS).health is Health.FINE
    assert vitals.judge(110.0, BOUNDS).health is Health.FINE
    assert vitals.judge(111.0, BOUNDS).health is Health.HUNG


def test_who_is_gone_for_good_is_dead_whatever_was_seen():
    vitals = Vitals(0.0)
    vitals.see(pulse(), 1.0)
    vitals.bury("it could not start: ValueError: no")
    verdict = vitals.judge(2.0, BOUNDS)
    assert (verdict.health, verdict.reason) == (Health.DEAD, "it could not start: ValueError: no")


def test_nobody_is_judged_by_the_time_in_which_nobody_looked():
    vitals = Vitals(0.0)
    vitals.see(pulse(), 10.0)
    vitals.excuse(500.0)
    assert vitals.silent_s(510.0) == 0
    assert vitals.judge(570.0, BOUNDS).health is Health.FINE
    assert vitals.judge(571.0, BOUNDS).health is Health.HUNG


def test_who_is_being_replaced_has_the_time_to_load_and_is_counted_once():
    vitals = Vitals(0.0)
    assert not vitals.lose(1.0), "nothing has been seen of it yet"
    vitals.see(pulse(), 5.0)
    assert vitals.lose(10.0)
    assert not vitals.lose(12.0)
    assert vitals.judge(300.0, BOUNDS).health is Health.STARTING
    assert not vitals.see(pulse(process="two"), 301.0), "it has been counted"
