"""How far `prepare` is, and what is left when it is ended on the way."""

import os
import signal
from itertools import pairwise

import pytest

from sluice.catalog.data.settings import SemanticIdSettings
from sluice.services.stages.prepare import prepare_data
from sluice.services.stages.prepare_progress import PrepareProgress, fit_seconds
from tests.unit.services.stages.test_prepare import make_items, make_log, write

STAGES = ("read", "sort", "split", "vectors", "codes")


def begun(monkeypatch) -> list[str]:
    """The stage at each update."""
    stages, advance = [], PrepareProgress.advance
    monkeypatch.setattr(
        PrepareProgress,
        "advance",
        lambda self, units, fields: (stages.append(self._stage), advance(self, units, fields))[1],
    )
    return stages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_it_and_leaves_nothing(tmp_path, monkeypatch, stage, number):
    stages = begun(monkeypatch)
    # as in a terminal: a process in the background ignores SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(*_: object) -> None:
        if stages[-1] == stage:
            os.kill(os.getpid(), number)

    settings = write(tmp_path / "raw", make_log(), make_items())
    with pytest.raises(KeyboardInterrupt):
        prepare_data(settings, tmp_path / "out", interrupt)
    signal.signal(signal.SIGINT, before)
    assert stages[-1] == stage and [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_every_stage_moves_the_bar(tmp_path, monkeypatch):
    stages, seen = begun(monkeypatch), []
    settings = write(tmp_path / "raw", make_log(), make_items())
    prepare_data(settings, tmp_path / "out", lambda done, total, fields: seen.append((done, total)))
    assert tuple(dict.fromkeys(stages)) == STAGES
    # The size of the log is known from the first, that of its catalogue too.
    assert len({total for _, total in seen[1:]}) == 1
    ends = [seen[max(i for i, s in enumerate(stages) if s == stage)][0] for stage in STAGES]
    assert all(later > earlier for earlier, later in pairwise(ends))


def test_no_update_but_the_last_says_that_all_is_done_while_codes_are_to_be_fitted():
    seen = []
    progress = PrepareProgress(
        lambda done, total, fields: seen.append((done, total)), SemanticIdSettings(), 100
    )
    progress.know(items=50)
    progress.advance(100, {})
    progress.know(rows=80, items=60)
    for stage in ("sort", "split"):
        progress.begin(stage)
        progress.advance(80, {})
    progress.begin("vectors")
    progress.advance(1.0, {})
    assert all(done < total for done, total in seen)
    progress.finish()
    assert seen[-1][0] == seen[-1][1]


def test_with_codes_of_the_user_the_rows_are_all_there_is_to_do():
    seen = []
    progress = PrepareProgress(
        lambda done, total, fields: seen.append((done, total)), SemanticIdSettings(), 100
    )
    progress.know(items=10**6, fits=False)
    progress.begin("split")
    progress.advance(100, {})
    assert seen == [(370, 370)]


def test_a_larger_catalogue_takes_longer():
    ids = SemanticIdSettings()
    (small, small_codes), (large, large_codes) = (fit_seconds(ids, items, 10**7) for items in (2000, 200_000))
    assert large > 3 * small and large_codes > 50 * small_codes
    assert fit_seconds(SemanticIdSettings(iterations=25), 2000, 10**7)[1] == pytest.approx(small_codes / 2)
