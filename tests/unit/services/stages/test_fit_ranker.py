"""`sluice fit-ranker` fits the ranker without each half of the users where a gate asks for trust, and only
there.
"""

import shutil
from pathlib import Path

import pytest

from sluice.catalog.files import sha256_of
from sluice.learner.objectives.settings.objective import AdaGrpoObjective
from sluice.learner.ranker.settings import RankerSettings
from sluice.services.config import load_config
from sluice.services.paths import RunPaths
from sluice.services.stages.fit_ranker import run_ranker_fit

RUN = Path(__file__).parents[3] / "data" / "run-of-0.1"
GATED = AdaGrpoObjective.model_validate({"gate": {"trust": {}}})


@pytest.fixture
def config(tmp_path):
    """Of a run whose ranker is fitted."""
    config = load_config(RUN / "config.yaml").model_copy(update={"output": str(tmp_path)})
    shutil.copytree(RUN, config.directory)
    return config


def contents(directory):
    return {path.relative_to(directory): sha256_of(path) for path in directory.rglob("*") if path.is_file()}


def test_without_trust_there_are_no_halves(config):
    run_ranker_fit(config, lambda *_: None)
    assert not RunPaths.of(config).ranker_halves.exists()


def test_trust_adds_the_halves_once_and_leaves_the_ranker_as_it_is(config):
    paths, told = RunPaths.of(config), []
    before = contents(paths.ranker)
    gated = config.model_copy(update={"objective": GATED})
    run_ranker_fit(gated, lambda done, total, _: told.append((done, total)))
    assert contents(paths.ranker) == before
    halves = contents(paths.ranker_halves)
    assert {path.parts[0] for path in halves} == {"without-0", "without-1", "inputs.json", "sums.json"}
    # The ranker is a third of all, and was there.
    shares = [done / total for done, total in told]
    assert shares == sorted(shares) and 1 / 3 < shares[0] < 0.4 and shares[-1] == 1
    run_ranker_fit(gated, lambda *_: pytest.fail("fitted again"))
    assert contents(paths.ranker_halves) == halves


def test_a_ranker_of_one_s_own_needs_no_halves(config):
    own = {"objective": GATED, "ranker": RankerSettings(use="tests.rollout_fakes:RowRanker")}
    run_ranker_fit(config.model_copy(update=own), lambda *_: None)
    assert not RunPaths.of(config).ranker_halves.exists()
