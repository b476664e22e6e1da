"""Opening the rollout engine that a config names, inside a rollout actor."""

from collections.abc import Mapping

from sluice.actors.engines.engine import Engine
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths


def engine_variables(config: RunConfig) -> dict[str, str]:
    """What a rollout actor's process must find in its environment."""
    engine = config.rollout.engine
    return engine_environment(engine) if engine.type == "vllm" else {}


def open_engine(config: RunConfig, paths: RunPaths, vocabulary: Vocabulary, seed: int) -> Engine:
    """Runs inside the rollout actor, whose environment is what `engine_variables` says before vLLM is
    imported.
    """
    settings, decode = config.rollout.engine, config.rollout.decode
    max_prompt_tokens = 1 + Dataset.open(paths.data).settings.max_history * vocabulary.layout.levels
    if settings.type == "tree":
        from sluice.actors.engines.tree import TreeEngine

        tree = TreeEngine(
            policy_dir=paths.policy,
            vocabulary=vocabulary,
            decode=decode,
            engine=settings,
            seed=seed,
            max_prompt_tokens=max_prompt_tokens,
        )
        _print_derivation(tree.derivation)
        return tree
    from sluice.actors.engines.vllm.engine import VllmEngine

    vllm = VllmEngine(
        policy_dir=paths.policy,
        vocabulary=vocabulary,
        decode=decode,
        engine=settings,
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        prompts_in_flight=config.rollout.prompts_per_lease * config.rollout.leases_ahead,
    )
    _print_derivation(vllm.derivation)
    return vllm


def _print_derivation(derivation: Mapping[str, tuple[object, str]]) -> None:
    for name, (value, reason) in derivation.items():
        print(f"engine {name} = {value}: {reason}", flush=True)
