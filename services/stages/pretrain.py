"""`sluice pretrain`: build or adapt the policy and train it on the logs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import PolicyError
from sluice.catalog.files import digest_files, sha256_of, write_atomically
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.learner.policy.policy import (
    Policy,
    adapt_policy,
    build_policy,
    load_policy,
    mark_catalogue,
    move_model,
    save_policy,
)
from sluice.learner.settings import PretrainSettings
from sluice.learner.training.pretrain import pretrain_policy
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.stages.staging import build_once, stage_inputs

_COST = "cost.json"


def run_pretraining(
    config: RunConfig, progress: Callable[[int, int, dict[str, float]], None], *, keep: bool = False
) -> Path:
    """Leave the starting policy at `<run>/policy`; does nothing when it is there, built from the same
    inputs, or with `keep` from whatever inputs.
    """
    return _pretrain(config, progress, RunPaths.of(config).policy, "pretrain", keep)


def run_sft_on_all_logs(config: RunConfig, progress: Callable[[int, int, dict[str, float]], None]) -> Path:
    """Leave at `<run>/arms/sft_all` what the same pretraining makes of the logs until the end of the fresh
    part.
    """
    return _pretrain(config, progress, RunPaths.of(config).sft_all, "fresh", keep=False)


def matches_start(paths: RunPaths) -> bool:
    """Whether SFT on all logs was trained as the start is, from the same data and settings."""
    start, longer = stage_inputs(paths.policy), stage_inputs(paths.sft_all)
    if start is None or longer is None:
        return False
    inputs: dict[str, object] = json.loads(start) | {"until": "fresh"}
    return bool(inputs == json.loads(longer))


def pretraining_seconds(directory: Path) -> float | None:
    """How long a pretraining took, validations included; None where an earlier version made it."""
    path = directory / _COST
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else None


def _pretrain(
    config: RunConfig,
    progress: Callable[[int, int, dict[str, float]], None],
    place: Path,
    until: str,
    keep: bool,
) -> Path:
    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    inputs = {
        "seed": config.seed,
        "data": sha256_of(paths.data / "manifest.json"),
        "policy": config.policy.model_dump(mode="json"),
        "pretrain": config.pretrain.model_dump(mode="json", exclude=_neutral(config.pretrain)),
        "evaluation": config.evaluation.model_dump(mode="json"),
    }
    if config.policy.base is not None:  # its content too: the path stays when the model behind it is another
        inputs["base"] = digest_files(Path(config.policy.base))
    if until != "pretrain":  # the stamps of starting policies have never named it
        inputs["until"] = until

    def build(directory: Path) -> None:
        began_s = time.monotonic()
        policy, validations = _initial(config, dataset), []
        if config.pretrain.epochs > 0:
            move_model(policy.model, "cuda" if torch.cuda.is_available() else "cpu")
            validations = pretrain_policy(
                policy, dataset, config.pretrain, config.evaluation, config.seed, progress, until
            )
        save_policy(policy, directory)
        write_atomically(directory / "validations.json", json.dumps(validations, indent=1))
        write_atomically(directory / _COST, json.dumps({"seconds": round(time.monotonic() - began_s, 1)}))

    build_once(place, inputs, build, keep=keep)
    return place


def _neutral(settings: PretrainSettings) -> set[str]:
    """Settings that are new since and change nothing here: a policy made without them is the same."""
    return {"optimizer"} if settings.optimizer == "adamw" else set()


def _initial(config: RunConfig, dataset: Dataset) -> Policy:
    """The policy to train, which carries the data set's catalogue from now on."""
    catalogue = fingerprint_catalogue(dataset.item_ids, dataset.codes)
    policy = _untrained(config, dataset, catalogue)
    mark_catalogue(policy, catalogue)
    return policy


def _untrained(config: RunConfig, dataset: Dataset, catalogue: str) -> Policy:
    base = config.policy.base
    if base is None:
        longest = 1 + (dataset.settings.max_history + 1) * len(dataset.level_sizes)
        return build_policy(config.policy, dataset.level_sizes, longest, config.seed)
    if not Path(base).is_dir():
        raise PolicyError(f"policy.base {base} is not a directory; give a Hugging Face model directory")
    if "sluice_level_sizes" in json.loads((Path(base) / "config.json").read_text()):
        return load_policy(Path(base), catalogue)
    return adapt_policy(Path(base), dataset.level_sizes)
