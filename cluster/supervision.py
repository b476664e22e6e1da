"""Who is dead, hung, starved or slow: pure decisions from what components say of themselves.

A component answers a ping in another thread than the one that works, and says in it how often its work loop
has turned and how much work is done (`Pulse`). So three things can be told apart that look alike to whoever
waits for its work:

    no answer                      its process is stopped, or wedged as a whole
    answers, the loop stands       the work itself is wedged, say an engine's step
    answers, the loop turns        it has nothing to do, or it is slow. Nobody replaces it for that
"""

from dataclasses import dataclass
from enum import Enum


class Health(Enum):
    """How a component is."""

    FINE = "fine"
    STARTING = "starting"
    STARVED = "starved"  # alive, without anything to do
    SLOW = "slow"  # at work, and nothing gets done
    HUNG = "hung"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What a component says of itself."""

    process: str  # another one means that it was started again
    turns: int  # of its work loop, which turns while there is nothing to do, too
    done: int  # pieces of work so far: groups, prompts, whatever it is there for
    works: bool  # has something to do now
    started: bool = True  # it is past loading


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long is too long."""

    start_s: float  # for loading
    hang_s: float  # without an answer, or without a turn of the loop
    slow_s: float  # without a piece of work done


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A component's health, with the sentence that says why."""

    health: Health
    reason: str = ""


class Vitals:
    """What has been seen of one component. The clock is passed in."""

    def __init__(self, now_s: float) -> None:
        self.renew(now_s)

    def renew(self, now_s: float) -> None:
        """It was replaced: all begins anew."""
        self._pulse: Pulse | None = None
        self._begun_s = self._seen_s = self._turned_s = self._done_s = now_s
        self._dead = ""

    def see(self, pulse: Pulse, now_s: float) -> bool:
        """A ping was answered. Returns whether by another process than before, started by somebody else."""
        before, restarted = self._pulse, False
        if before is not None and before.process != pulse.process:
            self.renew(now_s)
            before, restarted = None, True
        if before is None or before.turns != pulse.turns:
            self._turned_s = now_s
        if before is None or before.done != pulse.done or before.works != pulse.works:
            self._done_s = now_s
        if not pulse.started:
            self._turned_s = self._done_s = now_s
        elif before is not None and not before.started:
            self._begun_s = now_s
        self._pulse, self._seen_s = pulse, now_s
        return restarted

    def lose(self, now_s: float) -> bool:
        """A ping was refused, since its process is gone and another one is being started. Returns whether
        that is news.
        """
        is_news = self._pulse is not None
        if is_news:
            self.renew(now_s)
        return is_news

    def excuse(self, gap_s: float) -> None:
        """Whoever looks was away for so long, and has seen nothing of it."""
        self._begun_s += gap_s
        self._seen_s += gap_s
        self._turned_s += gap_s
        self._done_s += gap_s

    def silent_s(self, now_s: float) -> float:
        """Seconds since its last sign of life."""
        return now_s - self._seen_s

    def bury(self, reason: str) -> None:
        """It is gone for good."""
        self._dead = reason

    def judge(self, now_s: float, bounds: Bounds) -> Verdict:
        """How it is now.

        >>> vitals = Vitals(0.0)
        >>> vitals.see(Pulse(process="1", turns=5, done=2, works=True), 10.0)
        False
        >>> vitals.judge(80.0, Bounds(start_s=300, hang_s=60, slow_s=120))
        Verdict(health=<Health.HUNG: 'hung'>, reason='it has given no sign of life for 70 s: ...')
        """
        if self._dead:
            return Verdict(health=Health.DEAD, reason=self._dead)
        if self._pulse is None or not self._pulse.started:
            return self._judge_start(now_s, bounds)
        silent_s, still_s, fruitless_s = (now_s - at for at in (self._seen_s, self._turned_s, self._done_s))
        idle = Health.SLOW if self._pulse.works else Health.STARVED
        verdicts = (
            (
                silent_s > bounds.hang_s,
                Health.HUNG,
                f"it has given no sign of life for {silent_s:.0f} s: its process is stopped or wedged",
            ),
            (
                still_s > bounds.hang_s,
                Health.HUNG,
                f"it is alive, but what it works on has not moved for {still_s:.0f} s",
            ),
            (fruitless_s > bounds.slow_s, idle, f"nothing has got done for {fruitless_s:.0f} s"),
            (True, Health.FINE, ""),
        )
        return next(Verdict(health=health, reason=reason) for holds, health, reason in verdicts if holds)

    def _judge_start(self, now_s: float, bounds: Bounds) -> Verdict:
        silent_s = now_s - self._begun_s if self._pulse is None else now_s - self._seen_s
        bound_s = bounds.start_s if self._pulse is None else bounds.hang_s
        if silent_s > bound_s:
            return Verdict(
                health=Health.HUNG,
                reason=f"it has given no sign of life for {silent_s:.0f} s, and has not begun to work",
            )
        if now_s - self._begun_s > bounds.start_s:
            return Verdict(
                health=Health.HUNG,
                reason=f"it has been loading for {now_s - self._begun_s:.0f} s",
            )
        return Verdict(health=Health.STARTING)
