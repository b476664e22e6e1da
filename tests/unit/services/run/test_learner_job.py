"""How a worker of Ray Train runs the learner."""

import threading

from sluice.services.run import learner_job


def test_only_the_thread_that_trains_keeps_its_priority(monkeypatch):
    calls = []
    monkeypatch.setattr(learner_job, "lower_thread_priority", lambda *, but: calls.append(but))
    monkeypatch.setattr(learner_job, "train_loop", calls.append)
    options = {"config": object()}
    learner_job._train_loop(options)
    assert calls == [threading.get_native_id(), options]
