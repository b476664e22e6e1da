"""Opening the rollout engine that a config names, inside a rollout actor."""

from sluice.actors.engines.engine import Engine
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths


def _environment(config: RunConfig) -> dict[str, str]:
    """What a rollout actor's process must find in its environment."""
    engine = config.rollout.engine
    return engine_environment(engine) if engine.type == "vllm" else {}


def open_engine(config: RunConfig, paths: RunPaths, vocabulary: Vocabulary, seed: int) -> Engine:
    """Runs inside the rollout actor, whose environment is what `_environment` says before vLLM is
    imported.
    """
    arguments = {
        "policy_dir": paths.policy,
        "vocabulary": vocabulary,
        "decode": config.rollout.decode,
        "engine": config.rollout.engine,
        "seed": seed,
        "max_prompt_tokens": 1 + Dataset.open(paths.data).settings.max_history * vocabulary.layout.levels,
    }
    if config.rollout.engine.type == "tree":
        from sluice.actors.engines.tree import TreeEngine

        opened = TreeEngine(**arguments)
    else:
        from sluice.actors.engines.vllm.engine import VllmEngine

        prompts_in_flight = config.rollout.prompts_per_lease * config.rollout.leases_ahead
        opened = VllmEngine(**arguments, prompts_in_flight=prompts_in_flight)
    for name, (value, reason) in opened.derivation.items():
        print(f"engine {name} = {value}: {reason}", flush=True)
    return opened
