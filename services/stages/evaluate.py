"""`sluice evaluate`: a policy directory judged on the validation or test examples of a prepared data set."""

from collections.abc import Callable
from pathlib import Path

import torch

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.evaluation.evaluate import UserResults, evaluate_policy, sample_examples
from sluice.learner.policy.policy import load_policy, move_model
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths


def evaluate_run(
    config: RunConfig,
    policy_directory: Path,
    split: str,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    *,
    whole: bool = False,
    most: int | None = None,
) -> UserResults:
    """Decode the examples of `split`, at most `most` of them, drawn by chance.

    Validation honours `evaluation.max_users`, test and `whole` take all.
    """
    dataset = Dataset.open(RunPaths.of(config).data)
    policy = load_policy(policy_directory, fingerprint_catalogue(dataset.item_ids, dataset.codes))
    move_model(policy.model, "cuda" if torch.cuda.is_available() else "cpu")
    examples = dataset.examples(split)
    if split == "valid" and not whole:
        examples = sample_examples(examples, config.evaluation.max_users)
    examples = sample_examples(examples, most)
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    return evaluate_policy(policy.model, vocabulary, dataset, examples, config.evaluation, progress)


def run_evaluation(
    config: RunConfig,
    policy_directory: Path,
    split: str,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """The metrics of one policy directory."""
    results = evaluate_run(config, policy_directory, split, progress)
    return results.summary(Dataset.open(RunPaths.of(config).data), config.evaluation)
