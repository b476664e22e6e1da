"""Trust of the product's meter, and a wrong one, under the audit."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sluice.catalog.data.dataset import Dataset
from sluice.learner.ranker.load import load_ranker
from sluice.services.config import RunConfig, load_config
from sluice.services.paths import RunPaths
from sluice.services.run.trust import measure_trust
from sluice.services.stages.fit_ranker import run_ranker_fit
from tests.audit.data import open_run
from tests.audit.trust import check_trust

RECORDED = Path(__file__).parents[3] / "data" / "run-of-0.1"
SEQUENCE = {"ensemble": 2, "hidden_size": 8, "epochs": 2, "batch_interactions": 64}
STACK = {"itemknn": {}, "ease": {}, **SEQUENCE, "ensemble": 1}


def with_trust(tmp_path: Path, ranker: dict[str, object]) -> RunConfig:
    """The recorded run, with another ranker and a gate that asks for trust; its trust is measured."""
    settings = load_config(RECORDED / "config.yaml").model_dump(mode="json")
    settings["output"], settings["ranker"] = str(tmp_path), ranker
    settings["objective"]["gate"]["trust"] = {"items": 5, "at_least": 5, "others": 40}
    config = RunConfig.model_validate(settings)
    shutil.copytree(RECORDED, config.directory, ignore=shutil.ignore_patterns("checkpoints", "ranker"))
    (config.directory / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_ranker_fit(config, lambda *_: None)
    paths, dataset = RunPaths.of(config), Dataset.open(config.directory / "data")
    measure_trust(config, paths, dataset, load_ranker(config.ranker, paths.ranker, dataset))
    return config


@pytest.mark.parametrize("ranker", [SEQUENCE, STACK])
def test_trust_is_what_the_definition_says_and_a_wrong_one_is_noticed(
    tmp_path: Path, ranker: dict[str, object]
):
    directory = with_trust(tmp_path, ranker).directory
    check = check_trust(open_run(directory))
    assert (check.differ, check.values) == (0, 24), check
    # By the copy that has seen the user.
    first, second, aside = (directory / "ranker-halves" / name for name in ("without-0", "without-1", "x"))
    first.rename(aside), second.rename(first), aside.rename(second)
    if ranker == SEQUENCE:
        assert check_trust(open_run(directory)).differ
    rows = pd.read_parquet(directory / "trust.parquet")
    rows.loc[3, "trust"] += 0.5 if rows.loc[3, "trust"] < 0.5 else -0.5
    rows.to_parquet(directory / "trust.parquet")
    assert check_trust(open_run(directory)).differ


def test_a_run_without_trust_has_nothing_to_check():
    assert check_trust(open_run(RECORDED)) is None
