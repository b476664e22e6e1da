"""Evaluation on a small data set, against a policy whose answers are known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.settings import DataSettings, SemanticIdSettings, TableSource
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.collate import collate_logged
from sluice.learner.decoding.tree import TreeDecoder
from sluice.learner.evaluation.baselines import judge_scores
from sluice.learner.evaluation.evaluate import TOP, UserResults, evaluate_policy, sample_examples
from sluice.learner.policy.policy import build_policy
from sluice.learner.settings import EvaluationSettings, PolicySettings, PretrainSettings
from sluice.learner.training.pretrain import pretrain_policy
from sluice.services.stages.prepare import prepare_data
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
    summary = results.summary(dataset)
    assert summary["hr@1"] > 0.7  # chance is 1/13
    assert (summary["users"], summary["examples"]) == (USERS, USERS)
    assert "hr@50" not in summary, "a list of ten places knows nothing of fifty"
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
    summary = results.summary(dataset)
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
    joined = UserResults.concatenate([*shards, shards[1]])  # what comes twice counts once
    assert (joined.ranks == whole.ranks).all()
    assert (joined.users == whole.users).all()


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    """Targets that the user has consumed before: the last two interactions are the first two again."""
    directory = tmp_path_factory.mktemp("repeats")
    names = [f"i{item:02d}" for item in range(ITEMS)]
    order = [*range(8), 0, 1]
    rows = [
        (f"u{u:02d}", names[(u + item) % ITEMS], step) for u in range(6) for step, item in enumerate(order)
    ]
    users, items, times = zip(*rows, strict=True)
    pq.write_table(
        pa.table({"user_id": users, "item_id": items, "timestamp": times}), directory / "log.parquet"
    )
    source = TableSource(interactions=(str(directory / "log.parquet"),))
    codes = SemanticIdSettings(level_sizes=(4, 4), vector_dims=4, window=2)
    settings = DataSettings(name="r", source=source, semantic_ids=codes, exclude_seen=True, max_history=9)
    return Dataset.open(prepare_data(settings, directory / "data").directory)


def judged(dataset, constrained, width=ITEMS):
    policy = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), dataset.level_sizes, 64, 1)
    settings = EvaluationSettings(beam_width=width, constrained=constrained)
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    return evaluate_policy(policy.model, vocabulary, dataset, dataset.examples("test"), settings)


@pytest.mark.parametrize("constrained", [True, False])
def test_a_consumed_target_is_in_no_list_of_policies_and_of_scorers_alike(repeating, constrained):
    examples = repeating.examples("test")
    # Free beams hold every sequence of tokens, and so every item.
    found = judged(repeating, constrained, width=ITEMS if constrained else 8000)
    assert (found.items >= 0).any()
    assert found.ranks.tolist() == [0] * len(examples)
    everything = judge_scores(
        repeating, examples, lambda histories: np.zeros((len(histories), repeating.items)), ITEMS
    )
    assert everything.ranks.tolist() == [0] * len(examples)
    for results in (found, everything):
        for row, pair in enumerate(zip(examples.users, examples.positions, strict=True)):
            assert not set(repeating.seen(*pair)) & set(results.items[row])


def test_a_list_ends_where_the_catalogue_does(dataset, policy):
    """Twelve items are left of twenty, and the beams beyond them hold what the trie forbids."""
    settings = EvaluationSettings(beam_width=19)
    vocabulary, examples = Vocabulary.of(dataset.codes, policy.layout), dataset.examples("test")
    results = evaluate_policy(policy.model, vocabulary, dataset, examples, settings)
    assert results.width == 19
    for row, pair in enumerate(zip(examples.users, examples.positions, strict=True)):
        left = set(range(ITEMS)) - set(dataset.seen(*pair).tolist())
        assert set(results.items[row, : len(left)].tolist()) == left
        assert set(results.items[row, len(left) :].tolist()) == {-1}


def test_hallucination_is_of_the_likeliest_free_beams(dataset, policy):
    """The learnt policy's first beams are items, and its last ones are not."""
    settings = EvaluationSettings(beam_width=40)
    vocabulary, examples = Vocabulary.of(dataset.codes, policy.layout), dataset.examples("test")
    results = evaluate_policy(policy.model, vocabulary, dataset, examples, settings)
    decoder = TreeDecoder(policy.model, vocabulary)
    for row in range(3):
        pair = Examples(users=examples.users[row : row + 1], positions=examples.positions[row : row + 1])
        logged = collate_logged(dataset, pair, vocabulary)
        prefix = decoder.prefill(logged.history_BT, logged.history_lengths_B)
        free = decoder.beams(prefix, Decoding(kind="beam", candidates=TOP))
        assert results.invalid[row] == (vocabulary.trie.lookup(free.tokens_BWL) < 0).sum()
    assert results.invalid.sum() < 0.5 * TOP * len(examples)


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

    assert judge_scores(dataset, examples, next_item, width=10, batch=5).ranks.tolist() == [1] * USERS


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
