"""The device trie against `sluice.catalog.trie.trie`."""

import numpy as np
import pytest
import torch

from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.exclusions import Exclusions
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.decoding.device_trie import DeviceTrie

CPU = torch.device("cpu")
SIZES = (4, 6, 2, 4)
RNG = np.random.default_rng(0)
# No item has code 0 at the first two levels.
CODES = np.stack(np.unravel_index(RNG.permutation(120)[:50], (3, 5, 2, 4)), axis=1) + np.array([1, 1, 0, 0])
# Behind a foreign vocabulary of 10 tokens, the levels out of order.
LAYOUT = TokenLayout(level_sizes=SIZES, level_offsets=(17, 11, 25, 21), pad=0, bos=1, eos=2, vocab_size=28)
VOCABULARY = Vocabulary.of(CODES, LAYOUT)


def nodes_of(level):
    """All nodes of a depth, and one that is off the trie."""
    nodes = np.unique(VOCABULARY.trie.walk(VOCABULARY.item_tokens)[:, level])
    return np.append(nodes, -1).astype(np.int64)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("excludes", [False, True])
def test_allowed_codes_are_those_of_the_catalogues_mask(level, excludes):
    nodes = nodes_of(level)
    node_BW = np.stack([nodes, nodes[::-1], nodes])
    excluded = [RNG.choice(50, 30), np.empty(0, dtype=np.int32), np.arange(50)]
    owner = np.repeat(np.arange(3), len(nodes))
    reference = Exclusions(VOCABULARY.trie, excluded) if excludes else None
    mask = VOCABULARY.trie.mask(node_BW.reshape(-1), reference, owner)
    trie = DeviceTrie(VOCABULARY, CPU)
    exclusions = trie.exclusions(excluded) if excludes else None
    allowed = trie.allowed(level, torch.from_numpy(node_BW), exclusions)
    codes = slice(LAYOUT.level_offsets[level], LAYOUT.level_offsets[level] + SIZES[level])
    assert (allowed.numpy().reshape(len(owner), -1) == mask[:, codes]).all()
    assert mask.sum() == mask[:, codes].sum() > 0


@pytest.mark.parametrize("level", range(4))
def test_steps_are_those_of_the_catalogues_trie(level):
    nodes = nodes_of(level)
    node_BW, code_BW = np.meshgrid(nodes, np.arange(SIZES[level]), indexing="ij")
    found = DeviceTrie(VOCABULARY, CPU).step(
        level, torch.from_numpy(node_BW.copy()), torch.from_numpy(code_BW.copy())
    )
    expected = VOCABULARY.trie.step(node_BW, code_BW + LAYOUT.level_offsets[level])
    assert (found.numpy() == expected).all()
    assert (expected >= 0).any() and (expected < 0).any()
