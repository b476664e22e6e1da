"""Progress: rates and ETAs, marked lines that survive the trip through a log, throttling."""

import io

import pytest

from sluice.catalog.errors import ConfigError
from sluice.services.progress import (
    LiveSink,
    MarkedSink,
    PlainSink,
    Reporter,
    Throttle,
    Update,
    describe_update,
    format_duration,
    parse_line,
    rate_and_left,
    sink_for,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.closed = False

    def show(self, update: Update) -> None:
        self.updates.append(update)

    def line(self, text: str) -> None:
        raise AssertionError(text)

    def close(self) -> None:
        self.closed = True


def an_update(**changes: object) -> Update:
    values = {
        "phase": "train",
        "done": 3,
        "total": 10,
        "elapsed_s": 2.0,
        "rate_per_s": 1.5,
        "eta_s": 4.0,
        "fields": {},
    }
    return Update(**(values | changes))


def test_rate_and_eta_count_from_where_the_phase_began():
    clock, sink = Clock(), Recorder()
    with Reporter(sink, clock) as reporter, reporter.phase("train") as progress:
        clock.now += 50  # loading, before the first report
        progress(100, 200, {})
        clock.now += 10
        progress(120, 200, {"loss": 2})
    first, second, last = sink.updates
    assert (first.rate_per_s, first.eta_s) == (None, None)
    assert (second.rate_per_s, second.eta_s, second.elapsed_s) == (2.0, 40.0, 60.0)
    assert second.fields == {"loss": 2.0}
    assert (last.done, last.finished, last.eta_s) == (120, True, 0.0)
    assert reporter.seconds == {"train": 60.0}
    assert sink.closed


def test_an_unknown_total_has_no_eta():
    clock, sink = Clock(), Recorder()
    with Reporter(sink, clock).phase("read") as progress:
        progress(0, 0, {})
        clock.now += 1
        progress(5, 0, {})
    assert (sink.updates[1].rate_per_s, sink.updates[1].eta_s) == (5.0, None)


def test_a_failed_phase_is_not_shown_as_finished():
    sink = Recorder()
    reporter = Reporter(sink, Clock())
    with pytest.raises(ValueError, match="broken"), reporter.phase("train") as progress:
        progress(1, 2, {})
        raise ValueError("broken")
    assert [update.finished for update in sink.updates] == [False]
    assert reporter.seconds == {}


@pytest.mark.parametrize(
    ("done", "elapsed_s", "left", "expected"),
    [(0, 5.0, 9, (None, None)), (4, 2.0, 6, (2.0, 3.0)), (4, 2.0, -1, (2.0, 0.0)), (4, 0.0, 6, (None, None))],
)
def test_pace(done: int, elapsed_s: float, left: int, expected: tuple[float | None, float | None]):
    assert rate_and_left(done, elapsed_s, left) == expected


def test_a_marked_line_comes_back_as_the_same_update():
    update = an_update(fields={"gate": 0.25}, finished=True)
    assert parse_line(update.to_line()) == update
    assert parse_line("(pid=7) " + update.to_line()) == update  # Ray may put a prefix before it


@pytest.mark.parametrize(
    "line",
    ["hello", "", '::sluice-progress:: {"phase":"tr', '::sluice-progress:: {"a":1}', "::sluice-progress:: 3"],
)
def test_other_and_torn_lines_are_no_updates(line: str):
    assert parse_line(line) is None


def test_throttle_keeps_first_and_finished_and_phases_apart():
    clock = Clock()
    throttle = Throttle(10.0, clock)
    admitted = [
        throttle.admits(an_update()),
        throttle.admits(an_update()),
        throttle.admits(an_update(phase="other")),
    ]
    clock.now += 10
    admitted += [throttle.admits(an_update()), throttle.admits(an_update(finished=True))]
    assert admitted == [True, False, True, True, True]


def test_sinks_write_what_they_say():
    marked, plain = io.StringIO(), io.StringIO()
    for stream, sink in ((marked, MarkedSink), (plain, PlainSink)):
        target = sink(stream, Throttle(0.0, Clock()))
        target.show(an_update())
        target.line("other")
    assert marked.getvalue() == an_update().to_line() + "\nother\n"
    assert plain.getvalue() == "train: 3/10  1.5/s  4s left\nother\n"


def test_the_sink_follows_the_stream_and_the_environment():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(sink_for(io.StringIO(), {}), PlainSink)
    assert isinstance(sink_for(Terminal(), {"SLUICE_PROGRESS": "json"}), MarkedSink)
    assert isinstance(sink_for(Terminal(), {"TERM": "dumb"}), PlainSink)
    live = sink_for(Terminal(), {"TERM": "xterm"})
    live.close()
    assert isinstance(live, LiveSink)
    with pytest.raises(ConfigError, match="SLUICE_PROGRESS is 'loud'"):
        sink_for(io.StringIO(), {"SLUICE_PROGRESS": "loud"})


def test_describe():
    update = an_update(rate_per_s=0.05, eta_s=125.0, fields={"loss": 1.23456, "users": 943.0})
    assert describe_update(update) == "train: 3/10  3/min  2m05s left  loss 1.235  users 943"
    assert describe_update(an_update(finished=True, elapsed_s=61.0)) == "train: done 3/10  1.5/s  in 1m01s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599.7, "1h00m"), (7380, "2h03m")]
)
def test_duration(seconds: float, text: str):
    assert format_duration(seconds) == text
