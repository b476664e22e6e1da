"""Progress of long work: phases with a rate and an ETA, shown as live bars, as marked JSON lines, or as plain
lines.

Work reports through a callback `(done, total, fields)` and knows nothing of terminals. A job that runs on a
cluster writes marked lines into its log, and `sluice submit`, which follows that log, draws them as if the
work were local.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from sluice.catalog.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Callable[[int, int, dict[str, float]], None]

MARK = "::sluice-progress:: "
MODE_VARIABLE = "SLUICE_PROGRESS"  # auto (default), json, plain; how a job is told to write marked lines


@dataclass(frozen=True, kw_only=True)
class Update:
    """One state of one phase."""

    phase: str
    done: int
    total: int  # 0: unknown
    elapsed_s: float
    rate_per_s: float | None  # None until something was done
    eta_s: float | None
    fields: dict[str, float]
    finished: bool = False

    def to_line(self) -> str:
        """The marked JSON line of this update, without a line end."""
        return MARK + json.dumps(asdict(self), separators=(",", ":"))


def parse_line(line: str) -> Update | None:
    """The update in a marked line; None for every other line, a torn or foreign one included."""
    _, mark, payload = line.partition(MARK)
    if not mark:
        return None
    try:
        return Update(**json.loads(payload))
    except (ValueError, TypeError):
        return None


class Sink(Protocol):
    """Where updates and other lines go."""

    def show(self, update: Update) -> None:
        """Show one update."""

    def line(self, text: str) -> None:
        """Print a line of ordinary output."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Throttle:
    """Lets the first and the finished update of a phase through, and in between one per `interval_s`."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic):
        self._interval_s = interval_s
        self._clock = clock
        self._shown: dict[str, float] = {}

    def admits(self, update: Update) -> bool:
        """Whether this update is to be shown now."""
        now = self._clock()
        last = self._shown.get(update.phase)
        if update.finished:
            self._shown.pop(update.phase, None)
            return True
        if last is not None and now - last < self._interval_s:
            return False
        self._shown[update.phase] = now
        return True


class MarkedSink:
    """Marked JSON lines, for a log that `sluice submit` follows."""

    def __init__(self, stream: TextIO, throttle: Throttle):
        self._stream = stream
        self._throttle = throttle

    def show(self, update: Update) -> None:
        """Write the marked line."""
        if self._throttle.admits(update):
            print(update.to_line(), file=self._stream, flush=True)

    def line(self, text: str) -> None:
        """Write the line as it is."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to restore."""


class PlainSink:
    """One readable line per update, for files and pipes."""

    def __init__(self, stream: TextIO, throttle: Throttle):
        self._stream = stream
        self._throttle = throttle

    def show(self, update: Update) -> None:
        """Write the update as one line."""
        if self._throttle.admits(update):
            print(describe_update(update), file=self._stream, flush=True)

    def line(self, text: str) -> None:
        """Write the line as it is."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to restore."""


class LiveSink:
    """Bars on a terminal; other lines scroll above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._console = Console()
        self._bars = Bars(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            refresh_per_second=8,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def show(self, update: Update) -> None:
        """Move the phase's bar."""
        if update.phase not in self._tasks:
            self._tasks[update.phase] = self._bars.add_task(update.phase, numbers="")
        task = self._tasks[update.phase]
        total = update.total or (update.done if update.finished else None)
        self._bars.update(task, completed=update.done, total=total, numbers=_numbers(update))
        if update.finished:
            self._bars.stop_task(task)
            del self._tasks[update.phase]

    def line(self, text: str) -> None:
        """Print above the bars; colours that the line brings are kept."""
        from rich.text import Text

        self._console.print(Text.from_ansi(text), soft_wrap=True)

    def close(self) -> None:
        """Stop drawing; the bars stay where they are."""
        self._bars.stop()


class Reporter:
    """Turns the callbacks of phases into updates with rate and ETA.

    Use as a context manager:

        with Reporter.for_stream(sys.stdout) as reporter:
            with reporter.phase("prepare") as progress:
                progress(10, 100, {"rows": 10.0})
    """

    def __init__(self, sink: Sink, clock: Callable[[], float] = time.monotonic):
        self._sink = sink
        self._clock = clock
        self.seconds: dict[str, float] = {}  # wall time of every finished phase

    @classmethod
    def for_stream(cls, stream: TextIO = sys.stdout) -> "Reporter":
        """A reporter that fits where the output goes: a job's log, a terminal, a file."""
        return cls(sink_for(stream, os.environ))

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sink.close()

    def line(self, text: str) -> None:
        """Print one line without tearing the bars."""
        self._sink.line(text)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Progress]:
        """A named phase; yields the callback that its work reports to. One left by an error is not shown as
        done.
        """
        started = self._clock()
        last = Update(phase=name, done=0, total=0, elapsed_s=0.0, rate_per_s=None, eta_s=None, fields={})
        first: tuple[int, float] | None = None  # a resumed phase starts above zero: rates count from here

        def report(done: int, total: int, fields: Mapping[str, float]) -> None:
            nonlocal last, first
            now = self._clock()
            first = first or (done, now)
            rate, eta = rate_and_left(done - first[0], now - first[1], total - done)
            last = Update(
                phase=name,
                done=done,
                total=total,
                elapsed_s=round(now - started, 3),
                rate_per_s=rate,
                eta_s=eta if total else None,
                fields={key: float(value) for key, value in fields.items()},
            )
            self._sink.show(last)

        yield report
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - started
        state = asdict(last) | {
            "finished": True,
            "eta_s": 0.0,
            "elapsed_s": round(self._clock() - started, 3),
        }
        self._sink.show(Update(**state))


def rate_and_left(done: int, elapsed_s: float, left: int) -> tuple[float | None, float | None]:
    """Rate per second and seconds left at that rate; None while nothing was done."""
    if done <= 0 or elapsed_s <= 0:
        return None, None
    rate = done / elapsed_s
    return rate, max(left, 0) / rate


def sink_for(stream: TextIO, environment: Mapping[str, str]) -> Sink:
    """The sink that fits: as SLUICE_PROGRESS says, otherwise live on a terminal and plain elsewhere."""
    mode = environment.get(MODE_VARIABLE, "auto")
    if mode not in ("auto", "json", "plain"):
        raise ConfigError(f"{MODE_VARIABLE} is {mode!r}: set it to auto, json or plain")
    if mode == "json":
        return MarkedSink(stream, Throttle(0.5))
    if mode == "auto" and stream.isatty() and environment.get("TERM") != "dumb":
        return LiveSink()
    return PlainSink(stream, Throttle(10.0))


def describe_update(update: Update) -> str:
    """The update as one plain line."""
    state = "done " if update.finished else ""
    return f"{update.phase}: {state}{_numbers(update)}"


def _numbers(update: Update) -> str:
    parts = [f"{update.done}/{update.total}" if update.total else f"{update.done}"]
    if update.rate_per_s is not None:
        parts.append(_rate(update.rate_per_s))
    if update.finished:
        parts.append(f"in {format_duration(update.elapsed_s)}")
    elif update.eta_s is not None:
        parts.append(f"{format_duration(update.eta_s)} left")
    parts += [f"{name} {_number(value)}" for name, value in update.fields.items()]
    return "  ".join(parts)


def _rate(rate_per_s: float) -> str:
    return f"{_number(rate_per_s)}/s" if rate_per_s >= 0.1 else f"{_number(60 * rate_per_s)}/min"


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """Seconds as `42s`, `3m05s` or `2h03m`.

    >>> format_duration(185)
    '3m05s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
