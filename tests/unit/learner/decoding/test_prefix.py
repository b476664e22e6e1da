"""Histories computed once: shared within a batch, remembered over batches, equal to running each alone."""

import itertools

import numpy as np
import pytest
import torch

from sluice.learner.decoding import attention as tree_attention
from sluice.learner.decoding.attention import RowGeometry
from sluice.learner.decoding.prefix import PrefixCache, _filled, prefix_bytes, share_rows
from sluice.learner.decoding.tree import TreeDecoder
from tests.unit.learner.tree_cases import models, padded, vocabulary

MODELS = models()
A = [1, 3, 7, 10, 4, 8, 11, 5, 9, 13, 6, 7, 12]  # BOS and four items
B = [1, 6, 9, 14, 3, 7, 10]


def rows_of(histories):
    tokens, lengths = padded(histories)
    row_B, prompt_R = share_rows(tokens.numpy(), lengths.numpy())
    return row_B.tolist(), prompt_R.tolist()


def test_a_history_is_read_off_the_longest_that_goes_on_from_it():
    # 0 and 2 start 3; 4 equals 1; 5 starts nothing but has the tokens of padding
    histories = [A[:4], B, A[:7], A, B, [1, 0]]
    assert rows_of(histories) == ([0, 1, 0, 0, 1, 2], [3, 4, 5])


def test_what_stands_behind_a_history_is_no_part_of_it():
    tokens, lengths = padded([A[:4], B, A[:7]], filler=9)
    row_B, prompt_R = share_rows(tokens.numpy(), lengths.numpy())
    assert (row_B.tolist(), prompt_R.tolist()) == ([1, 0, 1], [1, 2])
    assert rows_of([A]) == ([0], [0])
    assert rows_of([[1, 0], [1], [1, 3]]) == ([0, 0, 1], [0, 2])


@pytest.fixture(params=["qwen3", "llama", "gpt2"])
def model(request):
    return MODELS[request.param]()


@pytest.fixture(params=["cpu", "cuda"])
def grouped_as_on(request, monkeypatch):
    """Rows attend together as they do on a CPU, by blocks, and as on a GPU."""
    monkeypatch.setitem(tree_attention._LIKE_LENGTHS, "cpu", tree_attention._LIKE_LENGTHS[request.param])
    monkeypatch.setattr(tree_attention, "_by_blocks", lambda device: request.param == "cpu")


def alone(model, histories):
    decoder = TreeDecoder(model, vocabulary())
    return [decoder.prefill(*padded([history])) for history in histories]


def assert_equal(prefix, expected):
    for row, one in enumerate(expected):
        length = int(one.lengths_B[0])
        assert int(prefix.lengths_B[row]) == length
        torch.testing.assert_close(prefix.hidden_BD[row], one.hidden_BD[0], atol=2e-5, rtol=1e-4)
        for mine, theirs in zip(prefix.keys + prefix.values, one.keys + one.values, strict=True):
            torch.testing.assert_close(mine[row, :, :length], theirs[0, :, :length], atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("grouped_as_on")
def test_mixed_and_shared_histories_equal_each_alone(model):
    # 13, 12 and 11 tokens attend together on a GPU, padded
    near = [[*B, 4, 8, 11, 6, 7], [1, 4, 9, 12, 5, 7, 14, 3, 8, 10, 6]]
    histories = [A[:4], B, A[:7], A, [1], B[:4], A[:10], *near]
    rows, lengths = padded(histories, filler=9)
    assert_equal(TreeDecoder(model, vocabulary()).prefill(rows, lengths), alone(model, histories))


def test_every_history_is_computed_once(model):
    decoder = TreeDecoder(model, vocabulary())
    counted = []
    forward = decoder._forward

    def count(tokens, *rest):
        counted.append(len(tokens))
        return forward(tokens, *rest)

    decoder._forward = count
    decoder.prefill(*padded([A[:4], A, A[:7], B, B]))
    assert counted == [len(A) + len(B)]


@pytest.mark.usefixtures("grouped_as_on")
def test_extensions_of_remembered_histories_equal_each_alone(model):
    decoder = TreeDecoder(model, vocabulary(), cache_bytes=10**6)
    decoder.prefill(*padded([A[:7], B[:4], [1, 5, 8, 13]]))
    assert (decoder.cache.asked_tokens, decoder.cache.found_tokens) == (15, 0)
    # B goes on from 4 known tokens, A and the last from 7, the third from BOS, which is not looked for.
    histories = [B, A, [1, 4, 7, 10], [*A[:7], 3, 8, 14]]
    assert_equal(decoder.prefill(*padded(histories)), alone(model, histories))
    assert (decoder.cache.asked_tokens, decoder.cache.found_tokens) == (15 + 34, 4 + 7 + 7)
    again = [A, B]
    assert_equal(decoder.prefill(*padded(again)), alone(model, again))
    assert (
        decoder.cache.found_tokens == 18 + 10 + 4
    )  # the last token is always computed, so 13 and 7 are out of reach


def test_a_shared_row_is_known_no_further_than_its_shortest_history_needs(model):
    decoder = TreeDecoder(model, vocabulary(), cache_bytes=10**6)
    decoder.prefill(*padded([A]))
    histories = [A, A[:7]]
    assert_equal(decoder.prefill(*padded(histories)), alone(model, histories))
    assert decoder.cache.found_tokens == 4


def test_fresh_rows_are_filled_to_a_round_number_of_new_tokens():
    lengths = np.array([300, 200, 137])  # 637 tokens: in eights
    assert _filled(np.zeros(3, dtype=np.int64), lengths).tolist() == [300, 203, 137]
    assert _filled(np.array([0, 0, 100]), lengths).tolist() == [300, 207, 137]
    assert _filled(np.array([0, 100, 0]), lengths).tolist() == [300, 200, 144]
    assert _filled(np.zeros(2, dtype=np.int64), np.array([301, 301])).tolist() == [
        301,
        301,
    ]  # there is no room
    assert _filled(np.zeros(2, dtype=np.int64), np.array([60, 3])).tolist() == [60, 3]


def test_a_filled_row_gives_what_it_gives_alone(model):
    generator = torch.Generator().manual_seed(0)
    histories = [torch.randint(0, 15, (n,), generator=generator).tolist() for n in (63, 40, 30)]
    counted, decoder = [], TreeDecoder(model, vocabulary())
    forward = decoder._forward
    decoder._forward = lambda tokens, *rest: (counted.append(len(tokens)), forward(tokens, *rest))[1]
    assert_equal(decoder.prefill(*padded(histories, filler=9)), alone(model, histories))
    assert counted == [134]  # 133 in twos


def test_new_weights_forget(model):
    decoder = TreeDecoder(model, vocabulary(), cache_bytes=10**6)
    decoder.prefill(*padded([A, B]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    decoder.forget()
    assert decoder.cache.nbytes == 0
    assert_equal(decoder.prefill(*padded([A, B])), alone(model, [A, B]))
    assert decoder.cache.found_tokens == 0


def row(*tokens):
    return np.asarray(tokens, dtype=np.int64)


def tensors(*values):
    """One layer's keys or values [R, T, 1, 1] of 4 tokens a row."""
    return [torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 4, -1, -1).clone()]


def test_rows_attend_with_those_of_like_length_and_fresh_ones_by_blocks(monkeypatch):
    monkeypatch.setattr(tree_attention, "_by_blocks", lambda device: device.type == "cpu")
    geometry = RowGeometry(known_R=np.array([0, 0, 0, 0, 4, 4]), lengths_R=np.array([10, 8, 7, 3, 10, 8]))
    for kind, cuts in {"cpu": [0, 4, 5, 6], "cuda": [0, 2, 3, 4, 6]}.items():
        groups = geometry.groups(torch.device(kind))
        assert [(group.start, group.stop) for group in groups] == list(itertools.pairwise(cuts))


def test_the_cache_finds_the_longest_start_within_the_limit():
    cache = PrefixCache(10**6, stride=3)
    cache.add([row(1, 5, 5, 5), row(1, 6, 6, 6)], tensors(10.0, 20.0), tensors(30.0, 40.0))
    hit = cache.find(row(1, 6, 6, 6, 7, 7, 7), 6)
    assert (hit.row, hit.length) == (1, 4)
    assert hit.keys[0][hit.row, 0].item() == 20.0 and hit.values[0][hit.row, 0].item() == 40.0
    assert cache.find(row(1, 6, 6, 6, 7, 7, 7), 3) is None  # BOS alone is not kept
    assert cache.find(row(1, 6, 6, 6, 7, 7, 7), 0) is None
    assert cache.find(row(2, 6, 6, 6), 4) is None
    assert cache.find(row(1, 6, 6, 6, *range(13)), 17) is None  # less than a quarter
    assert cache.find(row(1, 6, 6, 6, *range(12)), 16).length == 4
    assert (cache.asked_tokens, cache.found_tokens) == (58, 8)


def test_what_a_history_takes_is_known_before(model):
    decoder = TreeDecoder(model, vocabulary(), cache_bytes=10**6)
    decoder.prefill(*padded([A, [*A[:-1], 13]]))
    assert decoder.cache.nbytes == 2 * prefix_bytes(model, len(A), 3)


def test_the_cache_drops_the_oldest_batch_and_what_was_found_in_it():
    one_batch = (
        2 * 4 * 4 + 8 + 32
    )  # keys and values of 4 floats; a start of 4 tokens and the number before it
    cache = PrefixCache(2 * one_batch, stride=3)
    for value in (5, 6):
        cache.add([row(1, value, value, value)], tensors(float(value)), tensors(0.0))
    assert cache.nbytes == 2 * one_batch
    cache.add([row(1, 7, 7, 7)], tensors(7.0), tensors(0.0))
    assert cache.nbytes == 2 * one_batch
    assert cache.find(row(1, 5, 5, 5), 4) is None
    assert cache.find(row(1, 7, 7, 7), 4).keys[0][0, 0].item() == 7.0
    assert cache.find(row(1, 6, 6, 6), 4).length == 4
    cache.add([row(1, 8, 8, 8)] * 3, tensors(8.0, 8.0, 8.0), tensors(0.0, 0.0, 0.0))  # larger than everything
    assert cache.nbytes == 2 * one_batch
    assert cache.find(row(1, 8, 8, 8), 4) is None
    cache.add([row(1, 6, 6, 6)], tensors(60.0), tensors(0.0))  # 6 goes with its batch and is in this one
    assert cache.find(row(1, 6, 6, 6), 4).keys[0][0, 0].item() == 60.0
    assert cache.find(row(1, 7, 7, 7), 4).length == 4
