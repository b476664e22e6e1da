"""Opening the rollout engine that a config names, inside a rollout actor."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from sluice.actors.engines.engine import Engine
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths


class EngineArguments(TypedDict):
    """What every engine is made with, beside its settings."""

    policy_dir: Path
    vocabulary: Vocabulary
    decoding: Decoding
    seed: int
    max_prompt_tokens: int


def engine_variables(config: RunConfig) -> dict[str, str]:
    """What a rollout actor's process must find in its environment."""
    engine = config.rollout.engine
    return engine_environment(engine) if engine.type == "vllm" else {}


def engine_arguments(
    config: RunConfig, paths: RunPaths, vocabulary: Vocabulary, seed: int
) -> EngineArguments:
    """What an engine of this run is made with, beside its settings."""
    return {
        "policy_dir": paths.policy,
        "vocabulary": vocabulary,
        "decoding": config.decoding,
        "seed": seed,
        "max_prompt_tokens": 1 + Dataset.open(paths.data).settings.max_history * vocabulary.layout.levels,
    }


def open_engine(config: RunConfig, paths: RunPaths, vocabulary: Vocabulary, seed: int) -> Engine:
    """Runs inside the rollout actor, whose environment is what `engine_variables` says before vLLM is
    imported.
    """
    settings = config.rollout.engine
    arguments = engine_arguments(config, paths, vocabulary, seed)
    if settings.type == "tree":
        from sluice.actors.engines.tree import TreeEngine

        tree = TreeEngine(**arguments, engine=settings)
        _print_derivation(tree.derivation)
        return tree
    from sluice.actors.engines.vllm.engine import VllmEngine

    prompts_in_flight = config.rollout.prompts_per_lease * config.rollout.leases_ahead
    vllm = VllmEngine(**arguments, engine=settings, prompts_in_flight=prompts_in_flight)
    _print_derivation(vllm.derivation)
    return vllm


def _print_derivation(derivation: Mapping[str, tuple[object, str]]) -> None:
    for name, (value, reason) in derivation.items():
        print(f"engine {name} = {value}: {reason}", flush=True)
