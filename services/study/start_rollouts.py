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
from transformers import PreTrainedModel

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.gaps import NO_GAPS
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.batches.collate import collate_groups
from sluice.learner.evaluation.evaluate import sample_examples
from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.policy.policy import load_policy
from sluice.learner.ranker.load import load_ranker
from sluice.learner.scoring.shared_prefix import branch_log_probs
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_arguments
from sluice.services.run.trust import meter_factory
from sluice.services.study.judges.truth import TrueClickThrough
from sluice.services.study.rollouts import LocalRollouts

PROMPTS = "prompts.parquet"
DECIDING, MEASURING = "deciding", "measuring"
TRUST, AGREEMENT = "trust", "agreement"
_SEEDS = {DECIDING: 7001, MEASURING: 7002}  # beside the study's own
_BATCH = 64


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


@torch.no_grad()
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
    rollouts = LocalRollouts(
        dataset=dataset,
        prompts=examples,
        vocabulary=vocabulary,
        engine=engine,
        ranker=ranker,
        settings=config.rollout,
        seed=seed,
        gaps=NO_GAPS,
        meter=None if make_meter is None else make_meter(ranker),
    )
    place = {pair: row for row, pair in enumerate(zip(*_pairs(examples), strict=True))}
    result = _nothing(len(place))
    for first in range(0, len(place), _BATCH):
        records = rollouts.pull(0, 0, 1, min(_BATCH, len(place) - first), 0)
        batch = collate_groups(records, dataset, vocabulary, config.decoding)
        users, positions = (
            np.array([record.column(name)[0].as_py() for record in records], dtype=np.int32)
            for name in ("user", "position")
        )
        rows = [place[pair] for pair in zip(users.tolist(), positions.tolist(), strict=True)]
        said = compute_gate(batch, target_log_probs(policy.model, batch), gate)
        result.policy_rank[rows] = said.policy_rank_B
        result.ranker_rank[rows] = said.ranker_rank_B
        result.difficult[rows] = said.difficulty_B
        result.discriminable[rows] = said.discriminability_B
        if batch.trust_B is not None:
            result.trust[rows] = batch.trust_B
        if truth is not None:
            chances = truth.of_items(
                dataset, Examples(users=users, positions=positions), batch.candidate_items_BK.numpy()
            )
            counted = (batch.distinct_BK & batch.valid_BK).numpy()
            result.agreement[rows] = order_agreement(batch.candidate_scores_BK.numpy(), chances, counted)
    engine.close()
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
