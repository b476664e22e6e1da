"""The ranker pool: the actor around the micro-batcher, and the client that spreads requests over the
replicas.

A request is tried at most `attempts` times, each time at the next replica and with `timeout_s` of its own, so
a dead, slow or broken replica costs one attempt. A ranker whose answers to several requests in a row
are wrong is asked no more: they would be wrong for the rest of the run.
"""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from sluice.actors.calls import reason_of
from sluice.actors.ranker.micro_batcher import MicroBatcher, RankerStats
from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import RankerError, RankerSilentError
from sluice.cluster.environment import lower_thread_priority
from sluice.cluster.metrics import MetricSet
from sluice.cluster.supervision import Pulse
from sluice.learner.ranker.contract import Ranker, check_output
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.trust.meter import TrustMeter

_REPORT_EVERY_S = 2.0
_DEATHS = 2  # of replicas, after which a question is asked no more: it may be what they die of
BAD_IN_A_ROW = 3  # requests without a right answer, after which the ranker counts as broken


class RankerActor:
    """One replica. Decorate with `ray.remote` where it is launched."""

    def __init__(
        self,
        ranker_factory: Callable[[], Ranker],
        *,
        max_batch: int,
        max_wait_ms: float,
        name: str = "ranker",
        meter_factory: Callable[[Ranker], TrustMeter] | None = None,
        alone: bool = False,
    ) -> None:
        """`meter_factory` makes what measures trust in the ranker; None: no gate asks for it. `alone`: see
        `MicroBatcher`.
        """
        lower_thread_priority()
        self._name, self._metrics, self._reported_s = name, MetricSet(), 0.0
        self._process = uuid.uuid4().hex
        ranker = ranker_factory()
        self._service = MicroBatcher(
            ranker,
            max_batch=max_batch,
            max_wait_s=max_wait_ms / 1000,
            meter=None if meter_factory is None else meter_factory(ranker),
            alone=alone,
        )

    @ray.method(max_task_retries=0)  # a question that ends the process would end the next one too
    async def predict(
        self,
        histories: list[np.ndarray],
        candidates: np.ndarray,
        examples: Examples | None = None,
        after: str | None = None,
    ) -> tuple[RankerOutput, str]:
        """What the ranker says of the candidates of prompts, which are `examples`, and its version.

        `after` is the answer of `version`, passed as a reference so that the one comes after the other.
        """
        del after
        answer = await self._service.predict(histories, candidates, examples)
        if time.monotonic() - self._reported_s > _REPORT_EVERY_S:
            self._reported_s = time.monotonic()
            self._metrics.set_times(self._name, self._service.stats().time)
        return answer, self._service.version

    async def version(self) -> str:
        """The ranker's version; answers once the ranker is loaded."""
        return self._service.version

    async def stats(self) -> RankerStats:
        """Counts so far."""
        return self._service.stats()

    @ray.method(max_task_retries=0)  # refused while the process is being replaced, which is an answer
    async def pulse(self) -> Pulse:
        """Answered while the ranker scores, which it does in another thread."""
        return self._service.pulse(self._process)


@dataclass(frozen=True, kw_only=True)
class RankerAnswer:
    """What came back on one request."""

    output: RankerOutput  # [B, C]
    version: str
    attempts: int
    latency_s: float  # request to answer, failed attempts included


class RankerClient:
    """Picklable access to the pool."""

    def __init__(self, handles: tuple[Any, ...], *, timeout_s: float, attempts: int) -> None:
        self._handles, self._timeout_s, self._attempts = tuple(handles), timeout_s, attempts
        self._next: int | None = None
        self._bad: list[
            str
        ] = []  # why the last requests got no right answer, without one that did between them

    def predict(
        self, histories: list[np.ndarray], candidates: np.ndarray, examples: Examples | None = None
    ) -> RankerAnswer:
        """Ask, and wait for the answer.

        Raises:
            RankerError: every attempt failed; the message has each one's reason.
        """
        call = self.submit(histories, candidates, examples)
        while not call.ready():
            ray.wait([call.reference], timeout=call.left_s)
        return call.result()

    def submit(
        self, histories: list[np.ndarray], candidates: np.ndarray, examples: Examples | None = None
    ) -> "RankerCall":
        """Ask without waiting; `ready()` of the call has to be polled, since it is what starts the next
        attempt. `examples` are the prompts by user and position, where trust is to be measured.

        Raises:
            RankerError: the ranker is broken: so many requests in a row got wrong answers alone.
        """
        if len(self._bad) >= BAD_IN_A_ROW:
            raise RankerError(
                f"the ranker gave no right answer to {len(self._bad)} requests in a row, so the run ends: "
                f"{self._bad[-1]}. Mend it, try it with `sluice config check --deep`, and start with --resume"
            )
        if self._next is None:
            self._next = os.getpid()  # clients of different processes begin at different replicas
        self._next += 1
        order = [
            self._handles[(self._next + attempt) % len(self._handles)] for attempt in range(self._attempts)
        ]
        question = (histories, candidates, examples)
        return RankerCall(order, question, timeout_s=self._timeout_s, settle=self._settle)

    def _settle(self, bad: str | None) -> None:
        self._bad = [] if bad is None else [*self._bad, bad]


class RankerCall:
    """One request through all its attempts."""

    def __init__(
        self,
        replicas: list[Any],
        question: tuple[list[np.ndarray], np.ndarray, Examples | None],
        *,
        timeout_s: float,
        settle: Callable[[str | None], None],
    ) -> None:
        """`settle` is told how the call ended: None with an answer, else why an answer was wrong. It is not
        told of a call that nobody answered.
        """
        self._replicas, self._timeout_s = replicas, timeout_s
        self._question = question
        self._settle = settle
        self._reasons: list[str] = []
        self._bad: str | None = None  # why an answer was wrong
        self._deaths = 0  # of replicas that had the question
        self._answer: RankerAnswer | None = None
        self._started_s = time.monotonic()
        self._ask()

    @property
    def left_s(self) -> float:
        """What is left of the current attempt's time."""
        return max(0.0, self._deadline_s - time.monotonic())

    def ready(self) -> bool:
        """Answered, or given up. Starts the next attempt when the current one has failed."""
        if self._answer is None and not self._given_up:
            answered = bool(ray.wait([self.reference], timeout=0)[0])
            if answered or self.left_s == 0:
                self._take(answered)
        return self._answer is not None or self._given_up

    def result(self) -> RankerAnswer:
        """The answer of a ready call."""
        if self._answer is None:
            raise (RankerSilentError if self._bad is None else RankerError)(
                f"the ranker gave no scores in {len(self._reasons)} attempt(s) of {self._timeout_s:g} s: "
                + "; ".join(f"({number}) {reason}" for number, reason in enumerate(self._reasons, start=1))
            )
        return self._answer

    @property
    def _given_up(self) -> bool:
        return len(self._reasons) == len(self._replicas) or self._deaths >= _DEATHS

    def _ask(self) -> None:
        replica = self._replicas[len(self._reasons)]
        # Ray refuses a question while a replica is being replaced; `version` is asked until it is there.
        after = (replica.version.remote(),) if self._deaths else ()
        self.reference = replica.predict.remote(*self._question, *after)
        self._deadline_s = time.monotonic() + self._timeout_s

    def _take(self, answered: bool) -> None:
        try:
            if not answered:
                ray.cancel(self.reference)
                raise RankerError(f"no answer within {self._timeout_s:g} s")
            output, version = ray.get(self.reference, timeout=self._timeout_s)
            self._answer = RankerAnswer(
                output=replace(check_output(self._question[1], output), wrong=output.wrong),
                version=version,
                attempts=len(self._reasons) + 1,
                latency_s=time.monotonic() - self._started_s,
            )
            self._settle(None)
        except (RayError, RankerError) as error:
            self._reasons.append(reason_of(error))
            self._deaths += isinstance(error, RayActorError)
            if answered and _is_the_rankers(error):
                self._bad = self._reasons[-1]
            if not self._given_up:
                self._ask()
            elif self._bad is not None:
                self._settle(self._bad)


def _is_the_rankers(error: Exception) -> bool:
    """Whether an attempt failed by the ranker's own doing, which another attempt does not mend.

    That is a wrong answer, an exception, or a replica that is dead for good; not one that is being replaced.
    """
    return isinstance(getattr(error, "cause", error), RankerError) or isinstance(error, ActorDiedError)
