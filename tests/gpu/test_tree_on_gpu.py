"""Trie and tree decoding on a GPU: what they answer on the CPU."""

import numpy as np
import pytest
import torch

from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.trie import Trie
from sluice.learner.decoding.draw import random_streams
from sluice.learner.decoding.tree import TreeDecoder
from sluice.services.bench.engines.trie import random_codes
from tests.unit.learner.tree_cases import beam, models, padded, sample, stochastic_beam, vocabulary

SIZES = (300, 40, 256)


@pytest.fixture(scope="module")
def tries():
    """A trie with levels of bits and of tokens, on both devices."""
    layout = TokenLayout.fresh(SIZES)
    items = layout.encode(random_codes(5000, SIZES, 3))
    trie = Trie.build(items, layout.vocab_size)
    return trie, items, trie.on(torch.device("cpu")), trie.on(torch.device("cuda"))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_masks_and_steps_are_those_of_the_cpu(tries, level):
    trie, items, here, there = tries
    random = np.random.default_rng(level)
    rows = items[random.integers(0, len(items), 200)]
    nodes = np.zeros(200, dtype=np.int32)
    for depth in range(level):
        nodes = trie.step(nodes, rows[:, depth])
    exclusions = Exclusions(trie, [random.integers(0, len(items), 50) for _ in range(8)])
    requests = random.integers(0, 8, 200)
    answers = []
    for tensors in (here, there):
        node_R, request_R = (torch.from_numpy(part).long().to(tensors.device) for part in (nodes, requests))
        token_R = torch.from_numpy(rows[:, level]).long().to(tensors.device)
        strangers_R = torch.full_like(token_R, 5)
        logits = torch.zeros(200, trie.vocab_size, device=tensors.device)
        every_other = np.arange(0, 200, 2)
        tensors.restrict(logits, nodes[every_other], every_other, exclusions, requests[every_other])
        answers.append(
            [
                tensors.allowed(level, node_R, exclusions, request_R),
                tensors.step(node_R, token_R),
                tensors.step(node_R, strangers_R),
                logits,
            ]
        )
    for ours, theirs in zip(*answers, strict=True):
        assert torch.equal(ours, theirs.cpu())


@pytest.mark.parametrize("name", list(models()))
@pytest.mark.parametrize("kind", ["beams", "free beams", "sample", "free sample", "stochastic_beams"])
def test_decoding_is_that_of_the_cpu(name, kind):
    rows_BT, lengths_B = padded()
    found = []
    for device in ("cpu", "cuda"):
        decoder = TreeDecoder(models()[name]().to(device), vocabulary(), 2**20)
        for _ in range(2):  # the second time by the prefix cache
            prefix = decoder.prefill(rows_BT, lengths_B)
            random = random_streams([bytes([row]) * 16 for row in range(len(lengths_B))])
            constrained = not kind.startswith("free")
            if "beams" in kind and kind != "stochastic_beams":
                found.append(decoder.beams(prefix, beam(candidates=5, constrained=constrained)))
            elif kind == "stochastic_beams":
                found.append(decoder.stochastic_beams(prefix, stochastic_beam(candidates=5), random))
            else:
                found.append(
                    decoder.sample(prefix, sample(candidates=64, top_p=0.9, constrained=constrained), random)
                )
    first = found[0]
    for other in found[1:]:
        same_BW = (first.tokens_BWL == other.tokens_BWL).all(axis=2)
        assert same_BW.mean() > 0.97  # a draw on the edge between two tokens may fall on either side
        np.testing.assert_allclose(
            other.log_probs_BWL[same_BW], first.log_probs_BWL[same_BW], atol=1e-4, rtol=1e-4
        )
