"""Changes of the catalogue belong to the data for which they were pushed."""

from pathlib import Path

import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import PolicyError, RunError
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.inputs import prepare_run
from sluice.services.stages.catalogue import push_change, set_aside_foreign
from sluice.services.stages.pretrain import run_pretraining
from tests.tiny_data import tiny_dataset

SMALL = {"hidden_size": 32, "layers": 1, "heads": 1, "feed_forward_size": 32}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    settings = tiny_dataset(tmp_path / "source").settings
    config = RunConfig(name="a", output=str(tmp_path), data=settings, policy=SMALL, pretrain={"epochs": 0})
    build(config)
    return config


def build(config: RunConfig) -> None:
    prepare_run(config, RunPaths.of(config), lambda *_: None, keep=False)
    run_pretraining(config, lambda *_: None)


def with_other_codes(config: RunConfig) -> RunConfig:
    ids = config.data.semantic_ids.model_copy(update={"level_sizes": (3, 3)})
    return config.model_copy(update={"data": config.data.model_copy(update={"semantic_ids": ids})})


def retire(config: RunConfig, tmp_path: Path, row: int = 0) -> int:
    """Push one item's retirement; the version that came of it."""
    paths = RunPaths.of(config)
    file = tmp_path / "retire.csv"
    file.write_text(f"item_id\n{Dataset.open(paths.data).item_ids[row]}\n")
    return push_change(paths.root, None, file).version


def test_a_change_stays_with_the_data_that_it_was_made_for(config: RunConfig, tmp_path: Path):
    paths = RunPaths.of(config)
    assert set_aside_foreign(paths, resumed=False) is None
    assert [retire(config, tmp_path, row) for row in (0, 1)] == [1, 2]
    for resumed in (True, False):
        assert set_aside_foreign(paths, resumed=resumed) is None
    build(with_other_codes(config))
    with pytest.raises(RunError, match="has changes for other data than this run has now"):
        retire(config, tmp_path, 2)
    assert set_aside_foreign(paths, resumed=False) == paths.root / "catalogue-1"
    assert len(list((paths.root / "catalogue-1").glob("*.parquet"))) == 2 and not paths.catalogue.exists()
    assert retire(config, tmp_path) == 1
    build(config)
    assert set_aside_foreign(paths, resumed=False) == paths.root / "catalogue-2"


def test_a_change_that_does_not_say_what_it_is_for_stays_in_a_resumed_run_alone(
    config: RunConfig, tmp_path: Path
):
    paths = RunPaths.of(config)
    retire(config, tmp_path)
    (paths.catalogue / "made-for").unlink()
    assert set_aside_foreign(paths, resumed=True) is None
    assert set_aside_foreign(paths, resumed=False) == paths.root / "catalogue-1"


def test_nothing_is_pushed_to_a_policy_of_other_data(config: RunConfig, tmp_path: Path):
    """Its data were prepared anew, and its start was not."""
    prepare_run(with_other_codes(config), RunPaths.of(config), lambda *_: None, keep=False)
    with pytest.raises(PolicyError, match="was made for another catalogue"):
        retire(config, tmp_path)
    assert not RunPaths.of(config).catalogue.exists()
