"""Tree decoding against an exhaustive walk over all token sequences."""

import itertools

import numpy as np
import pytest
import torch

from catalog.vocabulary import Vocabulary
from learner.tree_decode import TreeDecoder
from tests.unit.learner_cases import LEVEL_SIZES, sharpen, tiny_llama, tiny_policy

ITEMS = np.array([[0, 0, 0], [0, 0, 4], [0, 2, 1], [1, 1, 1], [2, 0, 3], [2, 2, 2], [3, 1, 0], [3, 1, 1]])
HISTORIES = [[1, 3, 7, 10, 4, 8, 11], [1, 6, 9, 14], [1, 5, 7, 12]]


def all_scores(model, history, sequences):
    """Log-prob of each sequence after the history, one plain row per sequence."""
    tokens = torch.tensor([[*history, *sequence] for sequence in sequences])
    first, levels = len(history) - 1, len(sequences[0])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=tokens).logits.double(), -1)[:, first : first + levels]
    return log_p.gather(2, tokens[:, -levels:, None]).sum((1, 2)).numpy()


def padded():
    lengths = torch.tensor([len(history) for history in HISTORIES])
    rows = torch.zeros(len(HISTORIES), int(lengths.max()), dtype=torch.long)
    for row, history in enumerate(HISTORIES):
        rows[row, : len(history)] = torch.tensor(history)
    return rows, lengths


@pytest.fixture(params=["qwen3", "llama"])
def model(request):
    return sharpen(tiny_policy().model.eval()) if request.param == "qwen3" else sharpen(tiny_llama())


@pytest.fixture
def vocabulary():
    return Vocabulary.of(ITEMS, tiny_policy().layout)


def test_constrained_beams_are_the_best_items_in_order(model, vocabulary):
    decoder = TreeDecoder(model, vocabulary)
    beams = decoder.beams(decoder.prefill(*padded()), len(ITEMS))
    for row, history in enumerate(HISTORIES):
        scores = all_scores(model, history, vocabulary.item_tokens.tolist())
        order = np.argsort(-scores)
        assert vocabulary.trie.lookup(beams.tokens_BWL[row]).tolist() == order.tolist()
        assert beams.log_probs_BW[row] == pytest.approx(scores[order], abs=1e-4)


def test_free_beams_equal_an_exhaustive_search(model, vocabulary):
    decoder = TreeDecoder(model, vocabulary)
    vocab = 3 + sum(LEVEL_SIZES)
    beams = decoder.beams(decoder.prefill(*padded()), vocab**2, constrained=False)
    everything = list(itertools.product(range(vocab), repeat=3))
    for row, history in enumerate(HISTORIES[:1]):
        scores = all_scores(model, history, everything)
        best = np.argsort(-scores)[:20]
        assert beams.tokens_BWL[row, :20].tolist() == [list(everything[index]) for index in best]
        assert beams.log_probs_BW[row, :20] == pytest.approx(scores[best], abs=1e-4)


def test_excluded_items_are_left_out_of_their_own_prompt_only(model, vocabulary):
    decoder = TreeDecoder(model, vocabulary)
    excluded = [np.array([0, 1, 2]), np.array([], dtype=np.int64), np.arange(7)]
    beams = decoder.beams(decoder.prefill(*padded()), 8, excluded=excluded)
    found = [
        set(vocabulary.trie.lookup(row[np.isfinite(score)]).tolist())
        for row, score in zip(beams.tokens_BWL, beams.log_probs_BW, strict=True)
    ]
    assert found == [{3, 4, 5, 6, 7}, set(range(8)), {7}]


def test_a_prefix_can_be_decoded_again(model, vocabulary):
    decoder = TreeDecoder(model, vocabulary)
    prefix = decoder.prefill(*padded())
    first = decoder.beams(prefix, 4)
    decoder.beams(prefix, 6, constrained=False)
    again = decoder.beams(prefix, 4)
    assert (first.tokens_BWL == again.tokens_BWL).all()
    assert first.log_probs_BW == pytest.approx(again.log_probs_BW, abs=1e-6)


def test_free_decoding_takes_no_exclusions(model, vocabulary):
    decoder = TreeDecoder(model, vocabulary)
    with pytest.raises(ValueError, match="constrained decoding only"):
        decoder.beams(decoder.prefill(*padded()), 2, constrained=False, excluded=[np.array([0])] * 3)
