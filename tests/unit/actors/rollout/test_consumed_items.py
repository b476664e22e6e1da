"""Rollouts and learner over one set of items, on a real engine: the catalogue less what a user has."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.engines.tree import TreeEngine
from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import assemble_groups, read_prompt, score_groups
from sluice.actors.settings import DecodeSettings, TreeEngineSettings
from sluice.catalog.gaps import NO_GAPS
from sluice.catalog.rollout_group import encode_groups
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.collate import collate_groups
from sluice.learner.gate.gate import policy_rank
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.scoring.shared_prefix import branch_log_probs
from sluice.learner.settings import PolicySettings
from tests.rollout_fakes import CODES, LAYOUT, TinyDataset
from tests.unit.learner.learner_cases import sharpen

VOCABULARY = Vocabulary.of(CODES, LAYOUT)
LEASE = Lease(lease_id=0, attempt=1, user=0, position=5)  # has 0, 1, 2, 3, 4


def rolled_out(directory, target, decode):
    """The learner's batch of one prompt, with the policy that generated it."""
    data = TinyDataset()
    data.target = lambda user, position: target
    policy = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), (2, 2, 2), 16, 0)
    sharpen(policy.model)
    save_policy(policy, directory)
    decoding = decode.decoding(exclude_seen=True)
    engine = TreeEngine(directory, VOCABULARY, decoding, TreeEngineSettings(), 0, max_prompt_tokens=10)
    prompt = read_prompt(LEASE, data, NO_GAPS)
    tokens = LAYOUT.prompt(VOCABULARY.item_tokens, prompt.history)
    engine.submit([GenerateRequest(request_id="0", prompt=tokens, excluded=prompt.excluded)])
    drawn = assemble_groups([prompt], engine.step(), [0.0], vocabulary=VOCABULARY, distractors=2, seed=0)
    scores = RankerOutput.of(np.where(drawn.items_to_score < 0, np.nan, drawn.items_to_score))
    (group,) = score_groups(drawn, scores, ranker_version="r", score_s=0.0)
    return collate_groups([encode_groups(group)], data, VOCABULARY, decoding), policy.model, group


def learner_log_probs(batch, model):
    """The learner's log-probs of the ground truth and the candidates, under the batch's mask."""
    branches_BSL = torch.cat([batch.target_BL[:, None], batch.candidates_BKL], dim=1)
    return branch_log_probs(
        model,
        batch.history_BT,
        batch.history_lengths_B,
        branches_BSL,
        batch.allowed_BSLV,
        batch.decoding,
    ).log_probs_BSL.sum(dim=-1)[0]


@pytest.mark.parametrize("kind", ["sample", "beam", "stochastic_beam"])
@pytest.mark.parametrize("target", [6, 2])  # new to the user; taken a second time
def test_engine_and_learner_choose_from_what_the_user_does_not_have(tmp_path, kind, target):
    choices = {5, 6, 7, target}
    batch, model, group = rolled_out(tmp_path / "p", target, DecodeSettings(kind=kind, candidates=3))
    assert set(group.candidate_items.tolist()) <= choices
    assert group.consumed == 0
    log_probs_S = learner_log_probs(batch, model)
    engine_K = batch.behaviour_log_probs_BKL.sum(dim=-1)[0]
    torch.testing.assert_close(log_probs_S[1:], engine_K, rtol=1e-4, atol=1e-4)

    # Every item that there is to choose from, scored one by one: their probabilities add up to 1, the ground
    # truth's among them.
    every = sorted(choices)
    everything = replace(
        batch,
        candidates_BKL=torch.from_numpy(VOCABULARY.item_tokens[every])[None],
        allowed_BSLV=collated_mask(group, every),
    )
    exact = dict(zip(every, learner_log_probs(everything, model)[1:].exp().tolist(), strict=True))
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    assert log_probs_S[0].exp().item() == pytest.approx(exact[target], rel=1e-4)
    likelier = {item for item in group.candidate_items.tolist() if exact[item] > exact[target] * (1 + 1e-5)}
    assert policy_rank(batch, log_probs_S[:1] + 1e-5).item() == 1 + len(likelier - {target})


def collated_mask(group, items):
    """What the learner allows on the branches of these items."""
    many = replace(
        group,
        candidate_tokens=VOCABULARY.item_tokens[items].astype(np.int32),
        behaviour_log_probs=np.zeros((len(items), 3), dtype=np.float32),
        inclusion_log_probs=np.empty(0, dtype=np.float32),
        candidate_items=np.asarray(items, dtype=np.int32),
        candidate_scores=np.zeros(len(items), dtype=np.float32),
        candidate_spread=np.full(len(items), np.nan, dtype=np.float32),
        candidate_values=np.full(len(items), np.nan, dtype=np.float32),
    )
    decoding = DecodeSettings(candidates=max(2, len(items))).decoding(exclude_seen=True)
    return collate_groups([encode_groups(many)], TinyDataset(), VOCABULARY, decoding).allowed_BSLV


def test_a_free_candidate_that_the_user_has_is_invalid_and_counted(tmp_path):
    decode = DecodeSettings(kind="beam", candidates=9**3, constrained=False)  # every sequence
    batch, _, group = rolled_out(tmp_path / "p", 2, decode)
    made = VOCABULARY.trie.lookup(group.candidate_tokens)
    had = np.isin(made, [0, 1, 3, 4])  # 2 is the ground truth
    assert group.consumed == had.sum() == 4
    assert batch.valid_BK[0].tolist() == ((made >= 0) & ~had).tolist()
    assert batch.candidate_scores_BK[0].isnan().tolist() == (~batch.valid_BK[0]).tolist()
