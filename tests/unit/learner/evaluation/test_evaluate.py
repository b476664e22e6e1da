"""Evaluation on a small data set, against a policy whose answers are known."""

import numpy as np
import pytest
import torch

from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.evaluation.evaluate import UserResults, evaluate_policy, sample_examples
from sluice.learner.policy.policy import build_policy
from sluice.learner.settings import EvaluationSettings, PolicySettings, PretrainSettings
from sluice.learner.training.pretrain import pretrain_policy
from sluice.services.run.summary import judge_scores
from tests.tiny_data import ITEMS, USERS, tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def policy(dataset):
    """The log is deterministic (each item is followed by the next one), so a short training learns it all."""
    policy = build_policy(
        PolicySettings(hidden_size=32, layers=1, heads=2, feed_forward_size=48), dataset.level_sizes, 64, 0
    )
    settings = PretrainSettings(
        epochs=40, batch_interactions=64, lr=1e-2, dropout=0.0, validate_every=20, patience=9
    )
    pretrain_policy(policy, dataset, settings, EvaluationSettings(beam_width=10), seed=0)
    return policy


def test_pretraining_learns_the_log_and_stays_at_its_best_validation(dataset, policy):
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    results = evaluate_policy(
        policy.model,
        vocabulary,
        dataset,
        dataset.examples("valid"),
        EvaluationSettings(beam_width=10, batch_size=7),
    )
    summary = results.summary(dataset.items)
    assert summary["hr@1"] > 0.7  # chance is 1/13
    assert summary["users"] == USERS
    assert results.users.tolist() == list(range(USERS))


def test_items_already_consumed_are_never_recommended(dataset, policy):
    examples = dataset.examples("test")
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    results = evaluate_policy(policy.model, vocabulary, dataset, examples, EvaluationSettings(beam_width=10))
    for user, position, top in zip(examples.users, examples.positions, results.top_items, strict=True):
        assert not set(dataset.seen(user, position)) & set(top)


def test_evaluation_leaves_the_training_mode_as_it_was(dataset, policy):
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    policy.model.train()
    evaluate_policy(
        policy.model, vocabulary, dataset, sample_examples(dataset.examples("valid"), 3), EvaluationSettings()
    )
    assert policy.model.training
    policy.model.eval()


def test_an_untrained_policy_hallucinates(dataset):
    fresh = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), dataset.level_sizes, 64, 1)
    vocabulary = Vocabulary.of(dataset.codes, fresh.layout)
    results = evaluate_policy(
        fresh.model, vocabulary, dataset, dataset.examples("valid"), EvaluationSettings(beam_width=10)
    )
    summary = results.summary(dataset.items)
    assert summary["hallucination"] > 0.5
    assert summary["hallucination"] == results.invalid.sum() / (USERS * 10)


def test_subset_is_fixed_and_sorted(dataset):
    chosen = sample_examples(dataset.examples("valid"), 5)
    assert len(chosen.users) == 5
    assert (
        chosen.users.tolist()
        == sorted(chosen.users.tolist())
        == sample_examples(dataset.examples("valid"), 5).users.tolist()
    )
    assert len(sample_examples(dataset.examples("valid"), None).users) == USERS


def test_shards_concatenate_to_the_whole(dataset, policy):
    vocabulary, examples = Vocabulary.of(dataset.codes, policy.layout), dataset.examples("valid")
    settings = EvaluationSettings(beam_width=10)
    whole = evaluate_policy(policy.model, vocabulary, dataset, examples, settings)
    shards = [
        evaluate_policy(
            policy.model,
            vocabulary,
            dataset,
            type(examples)(users=examples.users[r::3], positions=examples.positions[r::3]),
            settings,
        )
        for r in range(3)
    ]
    joined = UserResults.concatenate(shards)
    assert (joined.ranks == whole.ranks).all()
    assert (joined.users == whole.users).all()


def test_a_scorer_is_judged_by_the_same_ranks(dataset):
    examples = dataset.examples("test")

    def next_item(histories):
        scores = np.zeros((len(histories), ITEMS), dtype=np.float32)
        order = {name: row for row, name in enumerate(dataset.item_ids)}
        for row, history in enumerate(histories):
            follower = order[f"i{(int(dataset.item_ids[history[-1]][1:]) + 1) % ITEMS:02d}"]
            scores[row, follower] = 1.0
            scores[row, history[-1]] = 2.0  # consumed: must not take a place
        return scores

    assert judge_scores(dataset, examples, next_item, batch=5).ranks.tolist() == [1] * USERS


def test_training_with_dropout_changes_nothing_in_evaluation(dataset, policy):
    from sluice.learner.policy.dropout import dropout_enabled

    tokens = torch.tensor([[1, 3, 7, 11]])
    with torch.no_grad():
        plain = policy.model(input_ids=tokens).logits
        with dropout_enabled(policy.model, residual=0.5, embedding=0.5):
            assert torch.equal(policy.model(input_ids=tokens).logits, plain)
            policy.model.train()
            assert not torch.allclose(policy.model(input_ids=tokens).logits, plain)
            policy.model.eval()
        policy.model.train()
        assert torch.equal(policy.model(input_ids=tokens).logits, plain)
        policy.model.eval()
