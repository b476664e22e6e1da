"""Batches from the logs, where every worker replays one feed and keeps its own part, and figures of those
from the queue.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import read_prompt
from sluice.catalog.data.dataset import Examples
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.decoding import Decoding
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.rollout_group import encode_groups
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.sources import LoggedSource, QueueSource, _items_had, open_prompts, prompts_of
from tests.rollout_fakes import TinyDataset
from tests.tiny_data import LENGTH, USERS, tiny_dataset
from tests.unit.learner.batches.test_collate import VOCABULARY, group


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("sources"))


def source(dataset, rank=0, world=1, share=4, gaps=NO_GAPS):
    vocabulary = Vocabulary.of(dataset.codes, TokenLayout.fresh(dataset.level_sizes))
    return LoggedSource(
        dataset,
        dataset.examples("pretrain"),
        vocabulary,
        seed=5,
        rank=rank,
        world=world,
        share=share,
        gaps=gaps,
    )


def rows(batch):
    return [
        tuple(history) + tuple(target)
        for history, target in zip(batch.history_BT.tolist(), batch.target_BL.tolist(), strict=True)
    ]


def test_the_gaps_of_a_prompt_are_those_of_the_rollout_with_its_number(dataset):
    gaps = Gaps(most=0.9, seed=5)
    feed = PromptFeed(dataset.examples("pretrain").users, dataset.examples("pretrain").positions, seed=5)
    vocabulary = Vocabulary.of(dataset.codes, TokenLayout.fresh(dataset.level_sizes))
    step = source(dataset, share=8, gaps=gaps)
    step.next(0, 0)
    batch, _ = step.next(1, 0)
    shown = []
    for number in range(16):
        user, position = feed.draw()
        lease = Lease(lease_id=number, attempt=1, user=user, position=position)
        shown.append(read_prompt(lease, dataset, gaps).history)
    tokens = [vocabulary.layout.prompt(vocabulary.item_tokens, history) for history in shown[8:]]
    assert batch.history_lengths_B.tolist() == [len(row) for row in tokens]
    for row, length, expected in zip(batch.history_BT, batch.history_lengths_B, tokens, strict=True):
        assert row[:length].tolist() == list(expected)


@pytest.mark.parametrize("gaps", [NO_GAPS, Gaps(most=0.9, seed=5)])
def test_ranks_share_a_step_without_overlap(dataset, gaps):
    whole, _ = source(dataset, share=8, gaps=gaps).next(0, 0)
    parts = [source(dataset, rank=rank, world=2, gaps=gaps).next(0, 0)[0] for rank in range(2)]
    width = whole.history_BT.shape[1]

    def targets(batch):
        padded = np.zeros((batch.prompts, width), dtype=np.int64)
        padded[:, : batch.history_BT.shape[1]] = batch.history_BT
        return {tuple(row) for row in np.concatenate([padded, batch.target_BL.numpy()], axis=1).tolist()}

    assert targets(parts[0]) | targets(parts[1]) == targets(whole)
    assert not targets(parts[0]) & targets(parts[1])


def test_a_resumed_source_goes_on_where_it_was(dataset):
    straight = source(dataset)
    expected = [rows(straight.next(step, 0)[0]) for step in range(6)]
    resumed = source(dataset)
    resumed.restore(straight.snapshot())
    assert rows(resumed.next(4, 0)[0]) == expected[4]
    assert rows(resumed.next(5, 0)[0]) == expected[5]
    assert expected[4] != expected[3]


def queue_figures(groups, look=lambda batch: None):
    queue = SimpleNamespace(pull=lambda *_: [encode_groups(row) for row in groups])
    decoding = Decoding(candidates=2)
    source = QueueSource(
        queue, TinyDataset(), VOCABULARY, rank=0, world=1, share=len(groups), decoding=decoding
    )
    batch, figures = source.next(0, learner_version=4)
    look(batch)
    return figures


def test_figures_say_how_many_candidates_were_consumed_items():
    def figures(*consumed):
        return queue_figures([group(consumed=count) for count in consumed])

    assert figures(1, 2)["consumed_share"] == 0.75
    assert figures(0, 0)["consumed_share"] == 0.0


def test_figures_of_stochastic_beams_say_how_likely_they_were_drawn():
    def figures(*inclusion):
        return queue_figures([group(inclusion_log_probs=np.log(np.asarray(q, "f4"))) for q in inclusion])

    assert figures([0.5, 1.0], [0.25, 0.25])["inclusion"] == pytest.approx(0.5)
    # The group's oldest token is of version 1 and its newest of version 2: staleness is of the oldest.
    assert figures([0.5, 1.0])["staleness"] == 3
    assert figures([0.5, 1.0])["repeated_share"] == 0
    assert "inclusion" not in figures([], [])


def test_a_batch_carries_the_logged_rewards(dataset):
    batch, _ = source(dataset).next(0, 0)
    items = [dataset.item_ids[item] for item in range(dataset.items)]
    stars = {tuple(tokens): 1 + int(items[row][1:]) % 5 for row, tokens in enumerate(batch_tokens(dataset))}
    assert batch.logged_rewards_B.tolist() == [stars[tuple(target)] for target in batch.target_BL.tolist()]


def batch_tokens(dataset):
    return Vocabulary.of(dataset.codes, TokenLayout.fresh(dataset.level_sizes)).item_tokens.tolist()


def test_prompts_can_be_the_last_training_positions(dataset):
    recent = prompts_of(dataset, 2)
    assert len(recent.users) == 2 * USERS
    assert set(recent.positions.tolist()) == {LENGTH - 4, LENGTH - 3}
    assert len(prompts_of(dataset, None).users) == len(dataset.examples("pretrain").users)


def test_prompts_that_leave_too_few_items_are_not_opened(tmp_path):
    dataset = tiny_dataset(tmp_path)  # of 20 items; nobody has one twice
    every = prompts_of(dataset, None)
    assert every.positions.max() > 4
    opened = open_prompts(tmp_path / "data", None, leaving=16)
    kept = every.positions <= 4
    assert opened.users.tolist() == every.users[kept].tolist()
    assert opened.positions.tolist() == every.positions[kept].tolist()
    assert len(open_prompts(tmp_path / "data", None).users) == len(every.users)


def test_an_item_that_a_user_had_twice_is_one_and_the_target_is_none():
    dataset = SimpleNamespace(seen=lambda *_: np.array([1, 1, 2, 3]), target=lambda *_: 3)
    prompt = Examples(users=np.array([0], dtype=np.int32), positions=np.array([4], dtype=np.int32))
    assert _items_had(dataset, prompt, 0) == 2
