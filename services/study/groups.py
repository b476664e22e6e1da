"""Rollouts of the start on held-out prompts, as training would see them, and what gates would admit of them.

Engine, groups, ranker and distractors are those of a study's arm (`services/study/rollouts.py`), with the
decoding of the config. The gate is decided by the code of the objective. What differs from training: the
prompts are of validation or test, so a ranker that was fitted on the prompts' own part is not flattered here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from sluice.actors.engines.engine import Engine
from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import leaves_enough, read_prompt
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
from sluice.learner.scoring.shared_prefix import branch_log_probs
from sluice.services.config import RunConfig
from sluice.services.study.rollouts import LocalRollouts, Meter

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

    float64 `[B]`, NaN where no candidate is an item. Every draw counts, as often as it was drawn, and one of
    the ground truth is a tie. So candidates and ground truth that are draws of one distribution have 1/2 in
    the mean, whatever the ranker.
    """
    own_B1 = batch.target_scores_B[:, None]
    tied_BK = batch.hit_BK | (batch.candidate_scores_BK == own_B1)
    below_BK = torch.where(tied_BK, 0.5, (batch.candidate_scores_BK < own_B1).double())
    return torch.where(batch.valid_BK, below_BK, 0.0).sum(dim=1) / batch.valid_BK.sum(dim=1)


@torch.no_grad()
def target_log_probs(model: PreTrainedModel, batch: GroupBatch) -> torch.Tensor:
    """Of the ground truths `[B]` nats, under the rollouts' distribution; on the host, as the batch is."""
    allowed_BSLV = None if batch.allowed_BSLV is None else batch.allowed_BSLV[:, :1].to(model.device)
    scores = branch_log_probs(
        model,
        batch.history_BT.to(model.device),
        batch.history_lengths_B,
        batch.target_BL[:, None].to(model.device),
        allowed_BSLV,
        batch.decoding,
    )
    return scores.log_probs_BSL[:, 0].sum(dim=-1).cpu()


def roll_out(
    config: RunConfig,
    dataset: Dataset,
    examples: Examples,
    policy: Policy,
    engine: Engine,
    ranker: Ranker,
    meter: Meter | None,
    gaps: Gaps,
    progress: Callable[[int], None],
) -> Groups:
    """A group for each of the examples that leaves K items to choose from.

    Args:
        config: decoding, distractors and seed of the rollouts.
        dataset: histories and targets.
        examples: the prompts.
        policy: the start, for the targets' log-probs.
        engine: with the start's weights.
        ranker: scores candidates and distractors.
        meter: measures trust; None: nobody asks.
        gaps: of the histories that the policy is shown.
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
        gaps=gaps,
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
    prompts = [
        read_prompt(Lease(lease_id=0, attempt=1, user=user, position=position), dataset, NO_GAPS)
        for user, position in zip(examples.users.tolist(), examples.positions.tolist(), strict=True)
    ]
    enough = np.array([leaves_enough(prompt, vocabulary, decoding) for prompt in prompts])
    if not enough.any():
        raise DataError(
            f"none of {len(examples)} prompts leaves {decoding.distinct} items to choose from: "
            "lower rollout.decode.candidates"
        )
    return Examples(users=examples.users[enough], positions=examples.positions[enough])
