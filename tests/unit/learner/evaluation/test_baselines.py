import numpy as np
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import DataSettings
from sluice.learner.evaluation.baselines import fit_baselines
from sluice.services.run.summary import judge_scores
from sluice.services.stages.prepare import prepare_data


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    return Dataset.open(prepare_data(DataSettings(), tmp_path_factory.mktemp("data") / "ml").directory)


def test_figures_of_movielens(movielens):
    """HR@10 on the test split, seen items excluded; popularity is known from elsewhere to be .0859."""
    examples = movielens.examples("test")
    hits = {
        name: float((judge_scores(movielens, examples, score).ranks <= 10).mean())
        for name, score in fit_baselines(movielens).items()
    }
    assert hits["popularity"] == pytest.approx(0.0859, abs=0.002)
    assert hits["itemknn"] == pytest.approx(0.2153, abs=0.002)
    assert hits["ease"] == pytest.approx(0.19, abs=0.02)


def test_baselines_see_the_logs_before_validation_alone(movielens):
    assert fit_baselines(movielens)["popularity"]([np.array([0])]).sum() == 100_000 - 2 * 943
