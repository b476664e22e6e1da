"""The ranker behind an actor: requests of many callers are put together into micro-batches.

A batch is scored as soon as it has `max_batch` prompts, or `max_wait_s` after its first request. Scoring runs
in a thread, so that further requests gather meanwhile. With a meter, trust in the ranker for the users of the
prompts is measured in the same turn.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import RankerError
from sluice.cluster.supervision import Pulse
from sluice.learner.activity_clock import ActivityClock
from sluice.learner.ranker.contract import Ranker, ask_ranker, spare_rows
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.trust.meter import TrustMeter

_FEW = 4  # prompts


@dataclass(frozen=True, kw_only=True)
class RankerStats:
    """What a ranker actor has done."""

    requests: int
    batches: int
    prompts: int
    failures: int
    places_measured: int  # of logged items, for trust
    places_remembered: int  # that needed no asking
    version: str
    # since the first request, by activity: wait_requests, wait_company, score, trust
    time: dict[str, float]


@dataclass(kw_only=True)
class _Request:
    histories: list[np.ndarray]
    candidates: np.ndarray
    examples: Examples | None
    answer: asyncio.Future[RankerOutput]


class MicroBatcher:
    """The micro-batcher. Belongs to one event loop."""

    def __init__(
        self,
        ranker: Ranker,
        *,
        max_batch: int,
        max_wait_s: float,
        meter: TrustMeter | None = None,
        alone: bool = False,
    ) -> None:
        """Answers come from `ranker`, and with trust where there is a `meter`.

        `alone`: no two requests share a batch, so the last bits of a score depend on its own request only.
        """
        self._alone = alone
        self._ranker, self._max_batch, self._max_wait_s = ranker, max_batch, max_wait_s
        self._meter = meter
        self._pending: list[_Request] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._time: ActivityClock | None = None
        self._turns, self._serving = 0, False
        self._counts = {"requests": 0, "batches": 0, "prompts": 0, "failures": 0}

    @property
    def version(self) -> str:
        """The ranker's version."""
        return self._ranker.version

    def stats(self) -> RankerStats:
        """Counts so far."""
        return RankerStats(
            **self._counts,
            places_measured=0 if self._meter is None else self._meter.measured,
            places_remembered=0 if self._meter is None else self._meter.remembered,
            version=self.version,
            time=self._time.seconds() if self._time is not None else {},
        )

    def pulse(self, process: str) -> Pulse:
        """Of `process`; while there is nothing to do, every look at it is a turn."""
        works = self._serving or bool(self._pending)
        self._turns += not works
        done = self._counts["prompts"] + self._counts["failures"]
        return Pulse(process=process, turns=self._turns, done=done, works=works)

    async def predict(
        self, histories: list[np.ndarray], candidates: np.ndarray, examples: Examples | None = None
    ) -> RankerOutput:
        """What the ranker says of one request, computed together with whatever else is waiting.

        `examples` are the B prompts by user and position, which trust is measured by, and which say whose the
        histories are to a ranker that needs it.

        Raises:
            RankerError: the ranker failed on this request, or its answer breaks the contract
                (`check_output`).
        """
        assert self._meter is None or examples is not None, "trust is measured by user and position"
        if self._worker is None:
            self._time = ActivityClock("score")
            self._worker = asyncio.get_running_loop().create_task(self._run(self._time))
        request = _Request(
            histories=histories,
            candidates=candidates,
            examples=examples,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._counts["requests"] += 1
        self._pending.append(request)
        self._arrived.set()
        return await request.answer

    async def _run(self, clock: ActivityClock) -> None:
        while True:
            await self._gather(clock)
            batch, self._serving = self._take(), True
            try:
                await self._serve(batch)
            except Exception as error:  # the error belongs to a caller; the loop must live on for the others
                self._counts["failures"] += 1
                if self._alone:  # asked row by row, its other scores would have other last bits
                    _settle(batch[0], _ranker_error(error))
                elif len(batch) > 1:
                    await self._serve_alone(batch)
                else:
                    await self._serve_rows(batch[0], error)
            finally:
                self._turns, self._serving = self._turns + 1, False

    async def _gather(self, clock: ActivityClock) -> None:
        """Wait for a first request, then for company."""
        with clock.activity("wait_requests"):
            while not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
        with clock.activity("wait_company"):
            await self._fill()

    async def _fill(self) -> None:
        if self._alone:
            return
        until_s = asyncio.get_running_loop().time() + self._max_wait_s
        while sum(len(request.histories) for request in self._pending) < self._max_batch:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(until_s):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Request]:
        """The oldest requests that fit one batch; a request larger than that comes alone, and is scored in
        parts.
        """
        taken: list[_Request] = []
        room = self._max_batch
        while self._pending and (not taken or len(self._pending[0].histories) <= room):
            taken.append(self._pending.pop(0))
            if self._alone:
                break
            room -= len(taken[-1].histories)
        return [
            request for request in taken if not request.answer.done()
        ]  # a caller that gave up is not served

    async def _serve(self, batch: list[_Request]) -> None:
        if not batch:
            return
        width = max(request.candidates.shape[1] for request in batch)
        histories = [history for request in batch for history in request.histories]
        candidates = np.concatenate([_widen(request.candidates, width) for request in batch])
        users = np.concatenate([_users_of(request) for request in batch])
        parts = []
        for first in range(0, len(histories), self._max_batch):
            rows = slice(first, first + self._max_batch)
            answer = await asyncio.to_thread(
                ask_ranker, self._ranker, histories[rows], candidates[rows], users[rows]
            )
            parts.append(spare_rows(candidates[rows], answer))
            self._counts["batches"] += 1
        self._counts["prompts"] += len(histories)
        whole, row = RankerOutput.concatenate(parts), 0
        if self._meter is not None:
            whole = replace(whole, trust=await self._measure_trust(self._meter, batch))
        for request in batch:
            rows, columns = request.candidates.shape
            _settle(request, whole.cut(row, rows, columns))
            row += rows

    async def _measure_trust(self, meter: TrustMeter, batch: list[_Request]) -> np.ndarray:
        """float32 `[B]`, of all prompts of the batch at once."""
        asked = [request.examples for request in batch if request.examples is not None]
        examples = Examples(
            users=np.concatenate([examples.users for examples in asked]),
            positions=np.concatenate([examples.positions for examples in asked]),
        )
        assert self._time is not None, "the first request started it"
        with self._time.activity("trust"):
            return await asyncio.to_thread(meter.measure, examples)

    async def _serve_alone(self, batch: list[_Request]) -> None:
        """After a failed batch: each request by itself, so that a bad one spoils no other."""
        for request in batch:
            try:
                await self._serve([request])
            except Exception as error:
                self._counts["failures"] += 1
                await self._serve_rows(request, error)

    async def _serve_rows(self, request: _Request, error: Exception) -> None:
        """After a failed request: each prompt by itself, so that a bad one spoils no other. A ranker that
        fails on the first few prompts is taken to fail on all.
        """
        rows, width = request.candidates.shape
        parts: list[RankerOutput] = []
        good = 0
        for row in range(rows if rows > 1 else 0):
            if row >= _FEW and not good:
                break
            try:
                parts.append(await self._ask_row(request, row))
                good += 1
            except Exception as of_row:
                zeros = np.where(request.candidates[row : row + 1] >= 0, 0.0, np.nan).astype(np.float32)
                nothing = replace(RankerOutput.of(zeros), trust=np.full(1, np.nan, dtype=np.float32))
                parts.append(replace(nothing, wrong={0: str(_ranker_error(of_row))}))
        if not good:
            _settle(request, _ranker_error(error))
            return
        _settle(request, _joined(parts, self._meter is not None).cut(0, rows, width))

    async def _ask_row(self, request: _Request, row: int) -> RankerOutput:
        asked = request.examples
        if asked is not None:
            asked = Examples(users=asked.users[row : row + 1], positions=asked.positions[row : row + 1])
        alone = _Request(
            histories=request.histories[row : row + 1],
            candidates=request.candidates[row : row + 1],
            examples=asked,
            answer=asyncio.get_running_loop().create_future(),
        )
        await self._serve([alone])
        return alone.answer.result()


def _joined(parts: list[RankerOutput], with_trust: bool) -> RankerOutput:
    """The rows of parts of one width. A spread or values that some parts know are 0 in the wrong ones."""
    known = [part for part in parts if not part.wrong]
    for name in ("spread", "values"):
        if any(not np.isnan(getattr(part, name)).all() for part in known):
            parts = [_with_zeros(part, name) if part.wrong else part for part in parts]
    trust = [part.trust for part in parts if part.trust is not None]
    return replace(RankerOutput.concatenate(parts), trust=np.concatenate(trust) if with_trust else None)


def _with_zeros(part: RankerOutput, name: str) -> RankerOutput:
    """A wrong part, whose scores are zeros, with zeros for its spread or its values too."""
    zeros: dict[str, Any] = {name: part.scores}
    return replace(part, **zeros)


def _users_of(request: _Request) -> np.ndarray:
    """int32 `[B]`, -1 where nobody said whose the histories are."""
    if request.examples is None:
        return np.full(len(request.histories), -1, dtype=np.int32)
    return request.examples.users


def _widen(candidates: np.ndarray, width: int) -> np.ndarray:
    return np.pad(candidates, ((0, 0), (0, width - candidates.shape[1])), constant_values=-1)


def _ranker_error(error: Exception) -> RankerError:
    return (
        error
        if isinstance(error, RankerError)
        else RankerError(f"the ranker failed: {type(error).__name__}: {error}")
    )


def _settle(request: _Request, outcome: RankerOutput | RankerError) -> None:
    if request.answer.done():  # the caller gave up in the meantime
        return
    if isinstance(outcome, RankerError):
        request.answer.set_exception(outcome)
    else:
        request.answer.set_result(outcome)
