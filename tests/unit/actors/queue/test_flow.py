"""Flow control: Little's law by hand, and a simulated run that neither starves nor lets groups grow old."""

import heapq

import pytest

from sluice.actors.queue.flow import FlowControl
from sluice.actors.queue.leases import Push
from sluice.actors.queue.ledger import RolloutLedger
from sluice.catalog.data.feed import PromptFeed
from tests.rollout_fakes import examples


def measured(latency_s=2.0, step_s=1.0, groups=32, workers=1, steps=9, **bounds):
    flow = FlowControl(**({"max_groups": 1000, "max_staleness": 4, "publish_every": 4} | bounds))
    flow.queued(latency_s)
    for step in range(steps):
        for _ in range(workers):
            flow.trained(step, groups // workers, step * step_s)
    return flow


def test_the_limit_is_little_s_law_with_headroom_and_a_step_ready():
    assert measured().limit(16) == 80 + 32 + 16  # 1.25 x 32 groups/s x 2 s, one step, one lease
    assert measured(step_s=0.5).limit(16) == 160 + 32 + 16
    assert measured(latency_s=1.0).limit(16) == 40 + 32 + 16
    assert measured(workers=4).limit(16) == 80 + 32 + 16


def test_until_there_are_measurements_the_bound_is_the_limit():
    assert measured(steps=8).limit(16) == 1000
    assert FlowControl(max_groups=64, max_staleness=1, publish_every=1).limit(16) == 64


def test_neither_bound_is_passed_and_a_step_can_always_be_filled():
    assert measured(max_groups=100).limit(16) == 100
    assert measured(max_staleness=2, publish_every=1).limit(16) == 64
    assert measured(max_staleness=0, publish_every=1).limit(16) == 48  # one step and one lease
    assert measured(max_staleness=0, publish_every=4).limit(16) == 128  # all steps of one version


def test_a_pause_counts_for_nothing_and_a_rewound_learner_is_measured_anew():
    flow = measured()
    flow.trained(9, 32, 100.0)  # after a validation
    assert flow.limit(16) == 128
    flow.trained(3, 32, 101.0)
    assert flow.limit(16) == 1000


def test_latencies_are_averaged():
    flow = measured(latency_s=2.0)
    flow.queued(42.0)  # 2 + 0.05 x 40 = 4 s
    assert flow.limit(16) == 160 + 32 + 16


def simulate(flow, *, rollout_s, learner_s, actors, steps=80, lease=8, share=16, publish_every=2):
    """Actors that each take `rollout_s` for a lease, and a learner that takes `learner_s` for a step of
    `share` groups; (seconds that the learner waited, mean staleness), both over the second half.
    """
    ledger = RolloutLedger(
        PromptFeed(*examples(64), seed=0),
        max_groups=400,
        max_bytes=10**9,
        max_staleness=100,
        lease_deadline_s=1e9,
        flow=flow,
    )
    now_s, step, version, busy_until_s, waited_s = 0.0, 0, 0, 0.0, 0.0
    events, idle, asked_s, base = [], list(range(actors)), 0.0, None
    while step < steps:
        for actor in list(idle):
            leases = ledger.lease(str(actor), "1", lease, now_s)
            if leases:
                idle.remove(actor)
                heapq.heappush(events, (now_s + rollout_s, actor, version, leases))
        if now_s >= busy_until_s and ledger.allot(step, 0, 1, share, version) is not None:
            waited_s += (now_s - asked_s) * (step >= steps // 2)
            busy_until_s = asked_s = now_s + learner_s
            heapq.heappush(events, (busy_until_s, -1, step, ()))
            step += 1
            continue
        now_s, actor, started, leases = heapq.heappop(events)
        if actor < 0:
            ledger.ack(started, 0)
            if flow is not None:
                flow.trained(started, share, now_s)
            version = (started + 1) // publish_every
            if started == steps // 2:
                status = ledger.status()
                base = (status.trained, status.trained * status.staleness_mean)
        else:
            pushes = [
                Push(
                    lease_id=one.lease_id,
                    attempt=one.attempt,
                    reference=None,
                    nbytes=1,
                    version_min=started,
                    version_max=started,
                )
                for one in leases
            ]
            ledger.push(str(actor), "1", pushes, now_s)
            idle.append(actor)
    status = ledger.status()
    staleness = (status.trained * status.staleness_mean - base[1]) / (status.trained - base[0])
    return waited_s, staleness


@pytest.mark.parametrize(("rollout_s", "actors"), [(1.0, 8), (4.0, 32), (0.3, 4)])
def test_a_learner_that_is_the_limit_never_waits_and_gets_fresher_groups(rollout_s, actors):
    """The learner takes 16 groups/s; the actors could make 64, 64 and 107."""
    flow = FlowControl(max_groups=400, max_staleness=100, publish_every=2)
    waited_s, staleness = simulate(flow, rollout_s=rollout_s, learner_s=1.0, actors=actors)
    full_waited_s, full_staleness = simulate(None, rollout_s=rollout_s, learner_s=1.0, actors=actors)
    assert waited_s == full_waited_s == 0
    assert staleness < 0.5 * full_staleness


def test_rollout_actors_that_are_the_limit_are_never_held_back():
    """They make 16 groups/s, and the learner could take 64."""
    flow = FlowControl(max_groups=400, max_staleness=100, publish_every=2)
    waited_s, _ = simulate(flow, rollout_s=4.0, learner_s=0.25, actors=8)
    assert waited_s == pytest.approx(simulate(None, rollout_s=4.0, learner_s=0.25, actors=8)[0])
