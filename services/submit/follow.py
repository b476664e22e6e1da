"""Follow a submitted job: its log with live progress, its end, and what Ctrl-C means meanwhile."""

import asyncio
import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sluice.catalog.errors import ClusterError
from sluice.services.interrupts import Terminated
from sluice.services.progress import Sink, parse_line, sink_for

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

INTERRUPTED = 130
LOST_AFTER_S = 60.0  # how long the job server may be unreachable before we give up following
_REQUEST_TIMEOUT_S = 30.0
_STATUS_EVERY_S = 15.0  # a log that stays silent longer is checked against the job's status
_DRAIN_S = 5.0  # and may stay silent as long once the job is over, in case its end is on its way

_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
Choice = Literal["stop", "leave", "watch"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How following ended."""

    exit_code: int
    finished: bool  # False: nobody waited for the job's end
    stopping: bool = False  # the cluster has been asked to stop it


class LogStream:
    """The job's log as a queue of chunks, read in a thread that reconnects and never repeats what it
    delivered.
    """

    def __init__(self, client: "JobSubmissionClient", job: str):
        self._client = client
        self._job = job
        self.chunks: queue.SimpleQueue[str | Exception | None] = (
            queue.SimpleQueue()
        )  # None: the log has ended
        # A daemon: a connection that hangs must not keep the command from ending.
        threading.Thread(target=lambda: asyncio.run(self._pump()), name="job-log", daemon=True).start()

    async def _pump(self) -> None:
        delivered, failing_since = 0, None
        while True:
            skip = delivered  # every connection starts at the beginning of the log
            try:
                async for chunk in self._client.tail_job_logs(self._job):
                    failing_since = None
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    delivered += len(fresh)
                    self.chunks.put(fresh)
                self.chunks.put(None)
                return
            except Exception as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > LOST_AFTER_S:
                    self.chunks.put(error)
                    return
                await asyncio.sleep(1.0)


class LineSplitter:
    """Chunks in, whole lines out."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, chunk: str) -> list[str]:
        """The lines that this chunk completes."""
        *lines, self._rest = (self._rest + chunk).split("\n")
        return lines

    def flush(self) -> list[str]:
        """The last line, if it had no line end."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []


def follow_job(client: "JobSubmissionClient", job: str) -> Outcome:
    """Show the job's log and progress until it ends, or until the user leaves it.

    Raises:
        ClusterError: the job server was unreachable for LOST_AFTER_S.
    """
    log, splitter = LogStream(client, job), LineSplitter()
    sink, last_news = sink_for(sys.stdout, os.environ), time.monotonic()
    stop: Literal["no", "wanted", "asked"] = "no"
    over = False
    try:
        while True:
            try:
                if stop == "wanted":
                    stop = "asked"
                    sink.line("stopping the job; Ctrl-C again leaves its end to the cluster")
                    call_with_bound(lambda: client.stop_job(job), _REQUEST_TIMEOUT_S, "stop the job")
                chunk = _next(log.chunks)
                if isinstance(chunk, Exception):
                    raise ClusterError(f"lost the log of job {job} ({chunk}); the job may still be running")
                if isinstance(chunk, str):
                    last_news = time.monotonic()
                    _show(sink, splitter.feed(chunk))
                    continue
                silent = time.monotonic() - last_news > (_DRAIN_S if over else _STATUS_EVERY_S)
                if chunk is None or (silent and over):
                    _show(sink, splitter.flush())
                    return Outcome(exit_code=_await_exit_code(client, job), finished=True)
                if silent:
                    over, last_news = _status(client, job) in _TERMINAL, time.monotonic()
            except KeyboardInterrupt as interrupt:
                sink.close()
                choice: Choice = "leave" if stop != "no" else _decide(interrupt, job)
                if choice == "leave":
                    return Outcome(exit_code=INTERRUPTED, finished=False, stopping=stop != "no")
                sink = sink_for(sys.stdout, os.environ)
                stop = "wanted" if choice == "stop" else "no"
    finally:
        sink.close()


def exit_code(status: str, driver_exit_code: int | None) -> int:
    """The code to return for a job that has ended: the driver's own, 128+n for signal n, 130 for a stopped
    job.
    """
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    if not driver_exit_code:
        return 1
    return driver_exit_code if driver_exit_code > 0 else 128 - driver_exit_code


def others_running(client: "JobSubmissionClient", own: str | None) -> list[str]:
    """The jobs on the cluster that have not ended, but for our own; none when the job server does not
    answer.
    """
    try:
        jobs = call_with_bound(client.list_jobs, _REQUEST_TIMEOUT_S, "list the cluster's jobs")
    except ClusterError:  # nothing runs on a head that is gone
        return []
    names = [job.submission_id or job.job_id for job in jobs if job.status.value not in _TERMINAL]
    return sorted(name for name in names if name is not None and name != own)


def call_with_bound(call: Callable[[], T], timeout_s: float, what: str) -> T:
    """`call()` in a thread, given up after `timeout_s`: Ray's HTTP client itself waits for ever."""
    box: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put((call(), None))
        except Exception as error:
            box.put((None, error))

    threading.Thread(target=run, name=what, daemon=True).start()
    try:
        value, error = box.get(timeout=timeout_s)
    except queue.Empty:
        raise ClusterError(
            f"could not {what}: the job server did not answer within {timeout_s:.0f} s"
        ) from None
    if error is not None:
        raise ClusterError(f"could not {what}: {error}") from error
    return value  # type: ignore[return-value]


_NOTHING_YET = object()


def _next(chunks: "queue.SimpleQueue[str | Exception | None]") -> Any:
    try:
        return chunks.get(timeout=0.5)
    except queue.Empty:
        return _NOTHING_YET


def _show(sink: Sink, lines: list[str]) -> None:
    for line in lines:
        update = parse_line(line)
        if update is None:
            sink.line(line)
        else:
            sink.show(update)


def _decide(interrupt: KeyboardInterrupt, job: str) -> Choice:
    if isinstance(interrupt, Terminated) or not sys.stdin.isatty():
        return "stop"
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        answer = (
            input(f"\nJob {job}: [s]top it, [l]eave it running, or Enter to go on watching? ").strip().lower()
        )
        return {"s": "stop", "l": "leave"}.get(answer[:1], "watch")  # type: ignore[return-value]
    return "leave"


def _status(client: "JobSubmissionClient", job: str) -> str:
    return str(
        call_with_bound(lambda: client.get_job_status(job), _REQUEST_TIMEOUT_S, "read the job's status").value
    )


def _await_exit_code(client: "JobSubmissionClient", job: str) -> int:
    deadline = time.monotonic() + LOST_AFTER_S
    while time.monotonic() < deadline:
        details = call_with_bound(
            lambda: client.get_job_info(job), _REQUEST_TIMEOUT_S, "read the job's result"
        )
        if details.status.value in _TERMINAL:
            return exit_code(details.status.value, details.driver_exit_code)
        time.sleep(0.2)
    raise ClusterError(
        f"the log of job {job} ended but {LOST_AFTER_S:.0f} s later its status still is not final: see the "
        f"dashboard"
    )
