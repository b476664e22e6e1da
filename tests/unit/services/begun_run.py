"""A run directory with data, start and a stand-in for its ranker."""

from pathlib import Path

from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run import inputs, manifest
from sluice.services.stages.pretrain import run_pretraining
from tests.tiny_data import tiny_dataset

SMALL = {"hidden_size": 32, "layers": 1, "heads": 1, "feed_forward_size": 32}


def begin_run(directory: Path) -> RunConfig:
    """The config of the run, whose directory lies in `directory`."""
    settings = tiny_dataset(directory / "source").settings
    config = RunConfig(name="a", output=str(directory), data=settings, policy=SMALL, pretrain={"epochs": 0})
    paths = RunPaths.of(config)
    manifest.write_manifest(config, paths.root)
    inputs.prepare_run(config, paths, lambda *_: None, keep=False)
    run_pretraining(config, lambda *_: None)
    paths.ranker.mkdir()
    (paths.ranker / "weights").write_text("w")
    return config
