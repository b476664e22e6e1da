"""Following a job whose log hangs: what is still on its way is shown, and the command ends."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from sluice.services.submit import follow as follow_module
from sluice.services.submit.follow import Outcome, follow_job


class Client:
    """A job server whose log never ends. Its last line comes once the job's status has been asked for."""

    def __init__(self, last_line: str):
        self._last_line = last_line
        self._asked = threading.Event()

    async def tail_job_logs(self, job):
        yield "first line\n"
        while not self._asked.is_set():
            await asyncio.sleep(0.01)
        yield self._last_line
        await asyncio.sleep(60)

    def get_job_status(self, job):
        self._asked.set()
        return SimpleNamespace(value="FAILED")

    def get_job_info(self, job):
        return SimpleNamespace(status=SimpleNamespace(value="FAILED"), driver_exit_code=3)


@pytest.mark.parametrize(
    "last_line", ["why it failed\n", "why it failed"], ids=["whole", "without a line end"]
)
def test_the_end_of_the_log_is_shown_though_the_job_is_over(last_line, monkeypatch, capsys):
    monkeypatch.setattr(follow_module, "_STATUS_EVERY_S", 0.2)
    monkeypatch.setattr(follow_module, "_DRAIN_S", 1.0)
    assert follow_job(Client(last_line), "job") == Outcome(exit_code=3, finished=True)
    assert capsys.readouterr().out.splitlines() == ["first line", "why it failed"]


class Endless(Client):
    """A job that takes its time to stop."""

    def __init__(self):
        super().__init__("")
        self.stopped = 0

    def stop_job(self, job):
        self.stopped += 1

    def get_job_status(self, job):
        return SimpleNamespace(value="RUNNING")


def interrupted(monkeypatch, times, answers=()):
    """What follows from Ctrl-C so many times, with these answers at a terminal; none: there is none."""
    client, left, said = Endless(), [KeyboardInterrupt] * times, list(answers)

    def next_chunk(_chunks):
        if client.stopped == times - len(left) or said or not left:
            raise left.pop()
        return follow_module._NOTHING_YET

    monkeypatch.setattr(follow_module, "_next", next_chunk)
    monkeypatch.setattr(follow_module.sys, "stdin", SimpleNamespace(isatty=lambda: bool(answers)))
    monkeypatch.setattr("builtins.input", lambda _question: said.pop(0))
    return client, follow_job(client, "job")


def test_ctrl_c_twice_stops_the_job_and_says_so(monkeypatch):
    client, outcome = interrupted(monkeypatch, 2)
    assert client.stopped == 1
    assert outcome == Outcome(exit_code=130, finished=False, stopping=True)


def test_a_job_that_is_left_goes_on(monkeypatch):
    client, outcome = interrupted(monkeypatch, 1, answers=["l"])
    assert client.stopped == 0
    assert outcome == Outcome(exit_code=130, finished=False, stopping=False)
