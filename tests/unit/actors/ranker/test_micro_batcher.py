import asyncio
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from sluice.actors.ranker.micro_batcher import MicroBatcher
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.load import load_ranker
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.ranker.settings import RankerSettings
from tests.rollout_fakes import BrokenRanker, PredictingRanker, RowRanker
from tests.unit.learner.trust_cases import prompts

FOREVER_S = 3600.0


def request(rows: int, width: int = 2, first: int = 0):
    histories = [np.arange(row + 1, dtype=np.int32) for row in range(rows)]
    return histories, np.arange(first, first + rows * width, dtype=np.int32).reshape(rows, width)


def test_requests_of_many_callers_are_scored_as_one_batch():
    ranker = RowRanker()

    async def scenario():
        service = MicroBatcher(ranker, max_batch=6, max_wait_s=FOREVER_S)
        return await asyncio.gather(
            service.predict(*request(2)),
            service.predict(*request(1, first=10)),
            service.predict(*request(3, width=3)),
        ), service.stats()

    (one, two, three), stats = asyncio.run(scenario())
    assert ranker.calls == [6]
    np.testing.assert_allclose(one.scores, [[0.01, 1.01], [2.02, 3.02]], rtol=1e-6)
    np.testing.assert_allclose(two.scores, [[10.01, 11.01]], rtol=1e-6)
    assert three.scores.shape == three.spread.shape == three.values.shape == (3, 3)
    assert np.isnan(three.spread).all() and np.isnan(three.values).all()
    assert (stats.requests, stats.batches, stats.prompts, stats.failures, stats.version) == (
        3,
        1,
        6,
        0,
        "row-1",
    )


def test_what_assess_says_comes_back_to_each_caller_cut_to_its_request():
    ranker = PredictingRanker()

    async def scenario():
        service = MicroBatcher(ranker, max_batch=4, max_wait_s=0.0)
        return await asyncio.gather(
            service.predict(*request(3, first=4)), service.predict(*request(6, width=1))
        )

    wide, long = asyncio.run(scenario())
    assert ranker.calls == [3, 4, 2]
    np.testing.assert_allclose(wide.spread, [[0.4, 0.5], [0.6, 0.7], [0.8, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(wide.values, [[40, 50], [60, 70], [80, 90]], rtol=1e-6)
    np.testing.assert_allclose(long.values, [[0], [10], [20], [30], [40], [50]], rtol=1e-6)
    assert wide.scores.dtype == wide.spread.dtype == np.float32


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda scores: scores,
            r"answered with ndarray, which has no scores, spread, values: return a "
            r"sluice\.learner\.ranker\.output",
        ),
        (
            lambda scores: RankerOutput.of(scores, spread=-scores),
            r"gave the spread -1\.01; a deviation is 0 or more",
        ),
        (
            lambda scores: RankerOutput.of(scores, values=scores[:, :1]),
            r"values of the ranker's predict: .*shape \(1, 1\)",
        ),
        (lambda scores: RankerOutput.of(scores[:, :1]), r"shape \(1, 1\) to candidates of shape \(1, 2\)"),
    ],
)
def test_a_broken_assess_is_named(answer, message):
    class Broken(RowRanker):
        def predict(self, histories, candidates):
            return answer(self.score(histories, candidates))

    with pytest.raises(RankerError, match=message):
        asyncio.run(MicroBatcher(Broken(), max_batch=1, max_wait_s=0).predict(*request(1)))


def test_a_lone_request_does_not_wait_for_company_for_ever():
    ranker = RowRanker()
    answer = asyncio.run(MicroBatcher(ranker, max_batch=64, max_wait_s=0.0).predict(*request(2)))
    assert answer.scores.shape == (2, 2)
    assert ranker.calls == [2]


def test_a_batch_never_exceeds_its_bound():
    ranker = RowRanker()

    async def scenario():
        service = MicroBatcher(ranker, max_batch=4, max_wait_s=0.0)
        return await asyncio.gather(*(service.predict(*request(rows)) for rows in (3, 3, 9)))

    assert [len(answer.scores) for answer in asyncio.run(scenario())] == [3, 3, 9]
    assert ranker.calls == [3, 3, 4, 4, 1]


def test_the_event_loop_lives_while_the_ranker_scores():
    release = threading.Event()

    class Slow(RowRanker):
        def score(self, histories, candidates):
            assert release.wait(30)
            return super().score(histories, candidates)

    async def scenario():
        ranker = Slow()
        service = MicroBatcher(ranker, max_batch=2, max_wait_s=FOREVER_S)
        first = asyncio.create_task(service.predict(*request(2)))
        others = [asyncio.create_task(service.predict(*request(1))) for _ in range(2)]
        await asyncio.sleep(0)  # all three are in; the loop still runs although the ranker is busy
        release.set()
        await asyncio.gather(first, *others)
        return ranker.calls

    assert asyncio.run(scenario()) == [2, 2]


def test_one_bad_request_spoils_no_other():
    class Picky(RowRanker):
        def score(self, histories, candidates):
            if (candidates == 99).any():
                raise ValueError("item 99 is unknown")
            return super().score(histories, candidates)

    async def scenario():
        service = MicroBatcher(Picky(), max_batch=3, max_wait_s=FOREVER_S)
        answers = await asyncio.gather(
            *(service.predict(*request(1, first=first)) for first in (0, 99, 4)), return_exceptions=True
        )
        service._max_wait_s = 0.0
        return answers, await service.predict(*request(1))

    (one, bad, three), later = asyncio.run(scenario())
    assert isinstance(bad, RankerError)
    assert "ValueError: item 99 is unknown" in str(bad)
    assert (one.scores.shape, three.scores.shape, later.scores.shape) == ((1, 2), (1, 2), (1, 2))


def test_a_ranker_that_scores_the_wrong_shape_is_named():
    class Flat(RowRanker):
        def score(self, histories, candidates):
            return super().score(histories, candidates)[:, 0]

    with pytest.raises(RankerError, match=r"shape \(1,\) to candidates of shape \(1, 2\)"):
        asyncio.run(MicroBatcher(Flat(), max_batch=1, max_wait_s=0).predict(*request(1)))


def test_a_caller_that_gave_up_is_not_served():
    ranker = RowRanker()

    async def scenario():
        service = MicroBatcher(ranker, max_batch=3, max_wait_s=FOREVER_S)
        gone = asyncio.create_task(service.predict(*request(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        return await service.predict(*request(2))

    assert asyncio.run(scenario()).scores.shape == (2, 2)
    assert ranker.calls == [2]


def test_the_user_s_ranker_is_constructed_with_the_data_set_and_its_options():
    settings = RankerSettings(use="tests.rollout_fakes:RowRanker", options={"scale": 3.0})
    ranker = load_ranker(settings, "nowhere", dataset=object())
    assert ranker.scale == 3.0


def test_the_built_in_ranker_is_loaded_from_its_directory(monkeypatch):
    module = SimpleNamespace(
        EnsembleRanker=SimpleNamespace(load=lambda directory, dataset: (directory, dataset))
    )
    monkeypatch.setitem(sys.modules, "sluice.learner.ranker.model", module)
    monkeypatch.setitem(sys.modules, "sluice.learner.ranker.stack", SimpleNamespace(StackedRanker=None))
    assert load_ranker(RankerSettings(), "somewhere", "data") == ("somewhere", "data")


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("no_such_module:Thing", {}, "cannot be imported: No module named 'no_such_module'"),
        ("tests.rollout_fakes:Nothing", {}, "cannot be imported: .* has no attribute 'Nothing'"),
        ("tests.rollout_fakes", {}, "write it as package.module:Class"),
        (
            "tests.rollout_fakes:RowRanker",
            {"colour": 1},
            "failed to start with options .*unexpected keyword argument",
        ),
        ("tests.rollout_fakes:TinyDataset", {}, "failed to start"),
        ("builtins:str", {}, "has no attribute 'score'"),
    ],
)
def test_an_unusable_ranker_is_named_with_the_remedy(use, options, message):
    with pytest.raises(RankerError, match=message):
        load_ranker(RankerSettings(use=use, options=options), "nowhere", dataset={})


def test_a_broken_ranker_s_reason_reaches_the_caller():
    with pytest.raises(RankerError, match="ZeroDivisionError: no scores today"):
        asyncio.run(MicroBatcher(BrokenRanker(), max_batch=1, max_wait_s=0).predict(*request(1)))


class Half:
    """A meter that trusts user u by u / 10, and says what it was asked."""

    measured, remembered = 5, 7

    def __init__(self):
        self.asked = []

    def measure(self, examples):
        if (examples.users == 9).any():
            raise RankerError("no places for user 9")
        self.asked.append(list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True)))
        return (examples.users / 10).astype(np.float32)


def test_trust_comes_back_to_each_caller_measured_for_the_whole_batch_at_once():
    meter, ranker = Half(), RowRanker()

    async def scenario():
        service = MicroBatcher(ranker, max_batch=2, max_wait_s=FOREVER_S, meter=meter)
        answers = await asyncio.gather(
            service.predict(*request(3), prompts((1, 4), (2, 5), (3, 6))),
            service.predict(*request(1), prompts((4, 7))),
            service.predict(*request(1), prompts((5, 8))),
        )
        return answers, service.stats()

    answers, stats = asyncio.run(scenario())
    assert [answer.trust.tolist() for answer in answers] == [
        pytest.approx([0.1, 0.2, 0.3]),
        pytest.approx([0.4]),
        pytest.approx([0.5]),
    ]
    assert meter.asked == [[(1, 4), (2, 5), (3, 6)], [(4, 7), (5, 8)]]
    assert (stats.places_measured, stats.places_remembered) == (5, 7)
    assert {"score", "trust"} <= set(stats.time)


def test_without_a_meter_there_is_no_trust():
    answer = asyncio.run(MicroBatcher(RowRanker(), max_batch=1, max_wait_s=0).predict(*request(1)))
    assert answer.trust is None


def test_a_trust_that_cannot_be_measured_spoils_no_other_request():
    async def scenario():
        service = MicroBatcher(RowRanker(), max_batch=2, max_wait_s=FOREVER_S, meter=Half())
        return await asyncio.gather(
            service.predict(*request(1), prompts((1, 4))),
            service.predict(*request(1), prompts((9, 5))),
            return_exceptions=True,
        )

    good, bad = asyncio.run(scenario())
    assert good.trust.tolist() == pytest.approx([0.1])
    assert isinstance(bad, RankerError) and "no places for user 9" in str(bad)


class OfUsers(RowRanker):
    """Adds the number of the user."""

    needs_users = True

    def score(self, histories, candidates, users):
        return super().score(histories, candidates) + 100 * users[:, None].astype(np.float32)


def test_a_ranker_of_users_is_told_whose_each_prompt_is():
    async def scenario():
        service = MicroBatcher(OfUsers(), max_batch=4, max_wait_s=0.0)
        return await asyncio.gather(
            service.predict(*request(2), prompts((7, 1), (3, 2))),
            service.predict(*request(1)),  # nobody says whose it is
            service.predict(*request(5, width=1), prompts(*((user, 1) for user in range(5)))),  # in parts
        )

    one, two, three = asyncio.run(scenario())
    assert (one.scores // 100).tolist() == [[7, 7], [3, 3]]
    assert (two.scores // 100).tolist() == [[-1, -1]]
    assert (three.scores // 100)[:, 0].tolist() == [0, 1, 2, 3, 4]


class NanFor(PredictingRanker):
    """Gives NaN to one item, or raises at it."""

    def __init__(self, item, raises=False):
        super().__init__()
        self.item, self.raises = item, raises

    def predict(self, histories, candidates):
        if self.raises and (candidates == self.item).any():
            raise ValueError(f"item {self.item} is unknown")
        output = super().predict(histories, candidates)
        output.scores[candidates == self.item] = np.nan
        return output


@pytest.mark.parametrize(
    ("raises", "why"), [(False, "the ranker gave nan to item 5"), (True, "ValueError: item 5 is unknown")]
)
def test_an_item_without_a_score_costs_its_own_prompt_alone(raises, why):
    async def scenario():
        service = MicroBatcher(NanFor(5, raises), max_batch=8, max_wait_s=0.0)
        return await asyncio.gather(service.predict(*request(4)), service.predict(*request(2, first=20)))

    spared, whole = asyncio.run(scenario())
    assert list(spared.wrong) == [2] and why in spared.wrong[2]
    assert whole.wrong == {}
    np.testing.assert_allclose(spared.scores[[0, 1, 3], 0], [0.01, 2.02, 6.04], rtol=1e-5)
    np.testing.assert_allclose(spared.spread[[0, 1, 3], 0], [0, 0.2, 0.6], rtol=1e-5)
    assert np.isfinite(spared.scores).all(), "nobody trips over what means nothing"


def test_a_ranker_that_raises_at_every_prompt_is_not_asked_for_each():
    class Never(RowRanker):
        def score(self, histories, candidates):
            self.calls.append(len(histories))
            raise ZeroDivisionError("no scores today")

    ranker = Never()
    with pytest.raises(RankerError, match="no scores today"):
        asyncio.run(MicroBatcher(ranker, max_batch=64, max_wait_s=0).predict(*request(32)))
    assert ranker.calls == [32, 1, 1, 1, 1]


def test_wrong_rows_go_with_the_request_they_belong_to():
    async def scenario():
        service = MicroBatcher(NanFor(21), max_batch=8, max_wait_s=FOREVER_S)
        return await asyncio.gather(service.predict(*request(4)), service.predict(*request(4, first=20)))

    first, second = asyncio.run(scenario())
    assert (first.wrong, list(second.wrong)) == ({}, [0])


def test_a_user_whose_trust_cannot_be_measured_costs_that_prompt_alone():
    service = MicroBatcher(RowRanker(), max_batch=4, max_wait_s=0.0, meter=Half())
    answer = asyncio.run(service.predict(*request(3), prompts((1, 4), (9, 5), (3, 6))))
    assert list(answer.wrong) == [1] and "no places for user 9" in answer.wrong[1]
    assert answer.trust[[0, 2]].tolist() == pytest.approx([0.1, 0.3])
    assert np.isnan(answer.trust[1])


def test_the_pulse_turns_with_batches_and_with_looks_at_an_idle_ranker():
    async def scenario():
        service = MicroBatcher(RowRanker(), max_batch=4, max_wait_s=0.0)
        idle = [service.pulse("p").turns for _ in range(3)]
        await service.predict(*request(2))
        return idle, service.pulse("p")

    idle, after = asyncio.run(scenario())
    assert idle == [1, 2, 3]
    assert (after.process, after.done, after.works, after.started) == ("p", 2, False, True)
    assert after.turns > 3


def test_the_pulse_stands_while_the_ranker_does():
    release = threading.Event()

    class Stuck(RowRanker):
        def score(self, histories, candidates):
            assert release.wait(30)
            return super().score(histories, candidates)

    async def scenario():
        service = MicroBatcher(Stuck(), max_batch=2, max_wait_s=0.0)
        call = asyncio.create_task(service.predict(*request(2)))
        await asyncio.sleep(0.1)
        pulses = [service.pulse("p") for _ in range(2)]
        release.set()
        await call
        return pulses

    first, second = asyncio.run(scenario())
    assert first.works and first == second
