"""What the gate would say of each test prompt, measured before any arm, from two rollouts of the start.

The first decides: into which stratum a prompt falls, and whether a gate would admit it. The second is
independent of it, and measures: how often the gate admits a stratum, and, where the truth is known, whether
the ranker orders the candidates as the truth does. One rollout for both would judge a choice by the very
noise that it was made by.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.gaps import NO_GAPS
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.evaluation.evaluate import sample_examples
from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.policy.policy import load_policy
from sluice.learner.ranker.load import load_ranker
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_arguments
from sluice.services.run.trust import meter_factory
from sluice.services.study.groups import roll_out
from sluice.services.study.judges.truth import TrueClickThrough

PROMPTS = "prompts.parquet"
DECIDING, MEASURING = "deciding", "measuring"
TRUST = "trust"
_SEEDS = {DECIDING: 7001, MEASURING: 7002}  # beside the study's own


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one rollout of n prompts says, in their order; a prompt that had too few items has rank 0."""

    policy_rank: np.ndarray  # int32 [n], 1..K+1
    ranker_rank: np.ndarray  # int32 [n], 1..K+1
    difficult: np.ndarray  # bool [n]
    discriminable: np.ndarray  # bool [n]
    trust: np.ndarray  # float32 [n], NaN: too few logged items, or nobody asks
    agreement: np.ndarray  # float32 [n], see `order_agreement`; NaN: no truth, or nothing to order


def gate_of(config: RunConfig) -> GateSettings:
    """The published gate with the tau, rho and rule of the config's objective, else with the defaults."""
    gate: GateSettings = getattr(config.objective, "gate", None) or GateSettings()
    return GateSettings(tau=gate.tau, rho=gate.rho, distractor_rule=gate.distractor_rule)


def measure_prompts(
    config: RunConfig,
    gate: GateSettings,
    paths: RunPaths,
    examples: int | None,
    truth: TrueClickThrough | None,
) -> pa.Table:
    """A row for each test example that arms are judged on: what either rollout says.

    Columns: `user`, `position`, `trust`, and the others of `Rollout` with the rollout's name before them.

    Args:
        config: says how rollouts are decoded, and how trust is measured, where its own gate asks for it.
        gate: decides what is difficult and what is discriminable.
        paths: of data, start and ranker.
        examples: of test, at most.
        truth: of the data set, where it is known.
    """
    dataset = Dataset.open(paths.data)
    chosen = sample_examples(dataset.examples("test"), examples)
    columns: dict[str, np.ndarray] = {"user": chosen.users, "position": chosen.positions}
    for name, seed in _SEEDS.items():
        rollout = _roll_out(config, gate, paths, dataset, chosen, seed + config.seed, truth)
        columns |= {f"{name}_{field}": getattr(rollout, field) for field in Rollout.__dataclass_fields__}
    columns[TRUST] = columns.pop(f"{DECIDING}_{TRUST}")  # both have the same
    del columns[f"{MEASURING}_{TRUST}"]
    return pa.table(columns)


def _roll_out(
    config: RunConfig,
    gate: GateSettings,
    paths: RunPaths,
    dataset: Dataset,
    examples: Examples,
    seed: int,
    truth: TrueClickThrough | None,
) -> Rollout:
    policy = load_policy(paths.policy)
    policy.model.float().eval()
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    engine = TreeEngine(**engine_arguments(config, paths, vocabulary, seed), engine=TreeEngineSettings())
    ranker = load_ranker(config.ranker, paths.ranker, dataset)
    make_meter = meter_factory(config, paths, lambda: dataset)
    meter = None if make_meter is None else make_meter(ranker)
    seeded = config.model_copy(update={"seed": seed})
    try:
        groups = roll_out(seeded, dataset, examples, policy, engine, ranker, meter, NO_GAPS, lambda _: None)
    finally:
        engine.close()
    place = {pair: row for row, pair in enumerate(zip(*_pairs(examples), strict=True))}
    rows = [place[pair] for pair in zip(groups.users.tolist(), groups.positions.tolist(), strict=True)]
    result = _nothing(len(place))
    said = [compute_gate(batch, target_B, gate) for batch, target_B in groups.batches]
    result.policy_rank[rows] = torch.cat([part.policy_rank_B for part in said])
    result.ranker_rank[rows] = torch.cat([part.ranker_rank_B for part in said])
    result.difficult[rows] = torch.cat([part.difficulty_B for part in said])
    result.discriminable[rows] = torch.cat([part.discriminability_B for part in said])
    if groups.trust is not None:
        result.trust[rows] = groups.trust
    if truth is not None:
        asked = Examples(users=groups.users, positions=groups.positions)
        chances = truth.of_items(dataset, asked, groups.gather(lambda batch: batch.candidate_items_BK))
        counted = groups.gather(lambda batch: batch.distinct_BK & batch.valid_BK)
        scores = groups.gather(lambda batch: batch.candidate_scores_BK)
        result.agreement[rows] = order_agreement(scores, chances, counted)
    return result


def order_agreement(scores: np.ndarray, chances: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Kendall's tau-a of two orders of the same candidates, float32 `[n]`, NaN of fewer than two candidates.

    Args:
        scores: `[n, K]`, the ranker's.
        chances: `[n, K]`, the truth's.
        counted: bool `[n, K]`, which candidates count.

    >>> order_agreement(np.array([[3.0, 1.0, 2.0]]), np.array([[0.3, 0.1, 0.2]]), np.full((1, 3), True))
    array([1.], dtype=float32)
    """
    both = counted[:, :, None] & counted[:, None, :]
    signs = np.sign(scores[:, :, None] - scores[:, None, :]) * np.sign(
        chances[:, :, None] - chances[:, None, :]
    )
    pairs = both.sum(axis=(1, 2)) - counted.sum(axis=1)  # less each with itself
    agreeing = np.where(both, signs, 0).sum(axis=(1, 2))
    return np.where(pairs > 0, agreeing / np.maximum(pairs, 1), np.nan).astype(np.float32)


def _pairs(examples: Examples) -> tuple[list[int], list[int]]:
    return examples.users.tolist(), examples.positions.tolist()


def _nothing(count: int) -> Rollout:
    return Rollout(
        policy_rank=np.zeros(count, dtype=np.int32),
        ranker_rank=np.zeros(count, dtype=np.int32),
        difficult=np.zeros(count, dtype=bool),
        discriminable=np.zeros(count, dtype=bool),
        trust=np.full(count, np.nan, dtype=np.float32),
        agreement=np.full(count, np.nan, dtype=np.float32),
    )
