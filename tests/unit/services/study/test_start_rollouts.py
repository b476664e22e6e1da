"""What a study leaves of the test prompts before any arm."""

import numpy as np
import pyarrow.parquet as pq

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.learner.gate.settings import GateSettings
from sluice.learner.ranker.load import load_ranker
from sluice.services.run.trust import meter_factory
from sluice.services.study.page import write_page
from sluice.services.study.results import cells_of, paths_of, prompts_directory
from sluice.services.study.settings import arm_config, load_study, set_config
from sluice.services.study.start_rollouts import PROMPTS, gate_of
from tests.unit.services.study.conftest import write_study


def columns_of(finished, seed=0):
    table = pq.read_table(prompts_directory(finished.study, "tiny", seed) / PROMPTS)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def test_there_is_a_row_for_every_example_that_arms_are_judged_on(finished):
    columns = columns_of(finished)
    cell = next(cell for cell in cells_of(finished.study) if (cell.arm, cell.seed) == ("gate", 0))
    judged = cell.examples("last", "test")
    assert columns["user"].tolist() == judged.column("user").to_pylist()
    assert columns["position"].tolist() == judged.column("position").to_pylist()


def test_the_rollouts_are_two_and_their_ranks_are_among_the_candidates(finished):
    columns = columns_of(finished)
    for name in ("policy_rank", "ranker_rank"):
        first, second = columns[f"deciding_{name}"], columns[f"measuring_{name}"]
        assert first.min() >= 1 and first.max() <= 7  # K is 6
        assert (first != second).any()
    head = 3  # tau 0.5
    assert np.array_equal(columns["deciding_difficult"], columns["deciding_policy_rank"] > head)
    assert not (columns["deciding_discriminable"] & (columns["deciding_ranker_rank"] > head)).any()
    assert np.isnan(columns["measuring_agreement"]).all()  # nobody knows the truth


def test_trust_is_that_of_each_rows_own_user(finished):
    columns = columns_of(finished)
    config = arm_config(finished.study, "tiny", "trust", 0, None)
    paths = paths_of(finished.study, "tiny", 0)
    dataset = Dataset.open(paths.data)
    meter = meter_factory(config, paths, lambda: dataset)(load_ranker(config.ranker, paths.ranker, dataset))
    examples = Examples(users=columns["user"], positions=columns["position"])
    np.testing.assert_array_equal(columns["trust"], meter.measure(examples))
    assert len(set(columns["trust"].tolist())) > 3


def test_the_gate_that_is_looked_at_is_the_published_one_with_the_configs_places(tmp_path):
    study = load_study(write_study(tmp_path))
    assert gate_of(set_config(study, "tiny", 0)) == GateSettings(tau=0.5)
    assert gate_of(arm_config(study, "tiny", "trust", 0, None)) == GateSettings()
    assert gate_of(arm_config(study, "tiny", "nll", 0, None)) == GateSettings()


def test_the_page_shows_strata_and_says_nothing_of_a_truth_that_nobody_knows(finished):
    page = write_page(finished.study).read_text()
    assert "gate - nll, by stratum" in page and "Retrieval-validity plane" in page
    assert "Does the gate know" not in page and "orders" not in page
