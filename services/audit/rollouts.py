"""Rollouts of the start on held-out prompts, as training would see them, and what gates would admit of them.

Engine, groups, ranker and distractors are those of a study's arm (`services/study/rollouts.py`), with the
decoding of the config. The gate is decided by the code of the objective. What differs from training: the
prompts are validation examples, so a ranker that was fitted on the prompts' own part is not flattered here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sluice.actors.engines.engine import Engine
from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import read_prompt
from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.errors import DataError
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.batches.collate import collate_groups
from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.policy.policy import Policy
from sluice.learner.ranker.contract import Ranker
from sluice.services.config import RunConfig
from sluice.services.study.rollouts import LocalRollouts, Meter
from sluice.services.study.start_rollouts import target_log_probs

_BATCH = 64  # prompts that are rolled out at a time


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The rollout groups of n prompts."""

    users: np.ndarray  # int32 [n]
    positions: np.ndarray  # int32 [n]
    batches: tuple[tuple[GroupBatch, torch.Tensor], ...]  # each with its targets' log-probs [B]

    def gather(self, of_batch: Callable[[GroupBatch], torch.Tensor]) -> np.ndarray:
        """A value `[n]` of every prompt."""
        return np.concatenate([of_batch(batch).cpu().numpy() for batch, _ in self.batches])

    @property
    def targets(self) -> np.ndarray:
        """int64 `[n]` item rows."""
        return self.gather(lambda batch: batch.target_items_B)

    @property
    def trust(self) -> np.ndarray | None:
        """float32 `[n]`, NaN where the user has too few logged items; None where nobody measured it."""
        if any(batch.trust_B is None for batch, _ in self.batches):
            return None
        return self.gather(lambda batch: batch.trust_B if batch.trust_B is not None else torch.empty(0))

    def gate(self, settings: GateSettings) -> dict[str, np.ndarray]:
        """The gate float64 `[n]`, and which prompts pass each part of it, by name."""
        results = [compute_gate(batch, target_B, settings) for batch, target_B in self.batches]
        parts = {
            "rate": [result.gate_B for result in results],
            "difficulty": [result.difficulty_B for result in results],
            "discriminability": [result.discriminability_B for result in results],
            "ranker_agrees": [result.ranker_agrees_B for result in results],
            "distractors_below": [result.distractors_below_B for result in results],
        }
        return {name: torch.cat(values).double().cpu().numpy() for name, values in parts.items()}


def areas_of(batch: GroupBatch) -> torch.Tensor:
    """Of each prompt: the share of its candidates that the ranker scores below the ground truth, ties half.

    float64 `[B]`, NaN where no candidate is an item other than the ground truth. Equal candidates count once,
    as for the gate.
    """
    rivals_BK = batch.distinct_BK & batch.valid_BK & ~batch.hit_BK
    own_B1 = batch.target_scores_B[:, None]
    below_BK = (batch.candidate_scores_BK < own_B1).double()
    below_BK = below_BK + 0.5 * (batch.candidate_scores_BK == own_B1)
    return torch.where(rivals_BK, below_BK, 0.0).sum(dim=1) / rivals_BK.sum(dim=1)


def roll_out(
    config: RunConfig,
    dataset: Dataset,
    examples: Examples,
    policy: Policy,
    engine: Engine,
    ranker: Ranker,
    meter: Meter | None,
    progress: Callable[[int], None],
) -> Groups:
    """A group for each of the examples that leaves K items to choose from.

    Args:
        config: decoding, distractors and gaps of the rollouts.
        dataset: histories and targets.
        examples: the prompts.
        policy: the start, for the targets' log-probs.
        engine: with the start's weights.
        ranker: scores candidates and distractors.
        meter: measures trust; None: nobody asks.
        progress: is told how many prompts are done.

    Raises:
        DataError: no prompt leaves enough items to choose from.
        RankerError: an answer of the ranker is not what it must be.
    """
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    prompts = _with_enough_items(config, dataset, examples, vocabulary)
    rollouts = LocalRollouts(
        dataset=dataset,
        prompts=prompts,
        vocabulary=vocabulary,
        engine=engine,
        ranker=ranker,
        settings=config.rollout,
        seed=config.seed,
        gaps=Gaps(most=config.learner.item_dropout, seed=config.seed),
        meter=meter,
    )
    batches, users, positions = [], [], []
    for step, first in enumerate(range(0, len(prompts), _BATCH)):
        records = rollouts.pull(step, 0, 1, min(_BATCH, len(prompts) - first), 0)
        users += [record.column("user")[0].as_py() for record in records]
        positions += [record.column("position")[0].as_py() for record in records]
        batch = collate_groups(records, dataset, vocabulary, config.decoding)
        batches.append((replace(batch, allowed_BSLV=None), target_log_probs(policy.model, batch)))
        progress(len(users))
    return Groups(
        users=np.asarray(users, dtype=np.int32),
        positions=np.asarray(positions, dtype=np.int32),
        batches=tuple(batches),
    )


def _with_enough_items(
    config: RunConfig, dataset: Dataset, examples: Examples, vocabulary: Vocabulary
) -> Examples:
    """Those that a rollout actor would not give up."""
    decoding = config.decoding
    if not decoding.constrained:
        return examples
    left = []
    for user, position in zip(examples.users.tolist(), examples.positions.tolist(), strict=True):
        prompt = read_prompt(Lease(lease_id=0, attempt=1, user=user, position=position), dataset, NO_GAPS)
        left.append(vocabulary.trie.items_without(prompt.excluded))
    enough = np.asarray(left) >= decoding.distinct
    if not enough.any():
        raise DataError(
            f"none of {len(examples)} validation prompts leaves {decoding.distinct} items to choose from: "
            "lower rollout.decode.candidates"
        )
    return Examples(users=examples.users[enough], positions=examples.positions[enough])
