"""What a run needs before it starts, made without waiting for anything to be learned."""

from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.stages import fit_ranker, prepare, pretrain


def make_artefacts(config: RunConfig) -> RunPaths:
    """Prepare the data and make policy and ranker as `config` says, with `pretrain.epochs` 0 an untrained
    policy.
    """
    paths = RunPaths.of(config)
    paths.root.mkdir(parents=True)
    prepare.prepare_data(config.data, paths.data, lambda *_: None)
    pretrain.run_pretraining(config, lambda *_: None)
    fit_ranker.run_ranker_fit(config, lambda *_: None)
    return paths
