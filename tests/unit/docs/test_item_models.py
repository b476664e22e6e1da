"""The comparison of item models with those of libraries, as far as it goes without the libraries."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from sluice.catalog.data.dataset import Examples
from sluice.learner.ranker.settings import EaseSettings
from tests.tiny_data import tiny_dataset

SOURCE = Path(__file__).parents[3] / "docs" / "scripts" / "item_models.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("item_models_script", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("compared"))


def test_without_the_libraries_it_ends_with_one_sentence(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    monkeypatch.setitem(sys.modules, "rectools", None)
    with pytest.raises(SystemExit, match="needs rectools and implicit"):
        script.main("nowhere")


def test_our_part_is_compared_as_it_is_shipped_and_with_whole_histories(script, dataset):
    rows = script.compare(
        script.our_models(dataset, dataset.examples("valid")), dataset, dataset.examples("valid")
    )
    assert [(row["model"], row["history"]) for row in rows] == [
        (model, history) for model in ("EASE", "ItemKNN") for history in ("decayed", "whole")
    ]
    assert rows[2]["hr@10"] > 0.9  # the log is deterministic
    assert rows[0]["hr@10 - ours, decayed"] == rows[2]["hr@10 - ours, decayed"] == 0
    assert rows[1]["hr@10 - ours, decayed"] == pytest.approx(rows[1]["hr@10"] - rows[0]["hr@10"], abs=1e-4)


def test_the_weights_of_histories_by_hand(script, dataset):
    examples = Examples(users=np.array([2, 0], np.int32), positions=np.array([1, 4], np.int32))
    whole = script.weigh_histories(dataset, examples, None).toarray()
    assert [np.flatnonzero(row).tolist() for row in whole] == [
        sorted(dataset.seen(*pair).tolist()) for pair in ((2, 1), (0, 4))
    ]
    assert set(whole.ravel().tolist()) == {0.0, 1.0}
    decayed = script.weigh_histories(dataset, examples, EaseSettings(window=2, decay=0.5)).toarray()
    assert decayed[1, dataset.seen(0, 4)].tolist() == [1e-9, 1e-9, 0.5, 1.0]
